// The shell: header, routes, theme, key. Pages are components of their own; those beside the list are loaded when they are needed.

import { html, render, useEffect, useRef, useState } from "./vendor/preact.js";
import { credentials } from "./api.js";
import { Bandits } from "./bandits.js";
import { Icon } from "./icons.js";
import { Dialog, Empty, Failure, KeyForm, Loading, Name } from "./parts.js";

/** What the hash names: {page, bandit}. */
function routeOf(hash) {
  const [first, name, view] = hash.replace(/^#\/?/, "").split("/");
  if (first === "operations") return { page: "operations" };
  if (first === "bandits" && name) return { page: view === "what-if" ? "what-if" : "bandit", bandit: decode(name) };
  return { page: first && first !== "bandits" ? "unknown" : "bandits" };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const THEMES = ["system", "light", "dark"];

function ThemeButton() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || "system");
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const choose = () => {
    if (next === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("nextarm.theme");
    } else {
      document.documentElement.dataset.theme = next;
      localStorage.setItem("nextarm.theme", next);
    }
    setTheme(next);
  };
  return html`<button class="icon" onClick=${choose} aria-label="Theme: ${theme}. Change to ${next}" title="Theme: ${theme}">
    <${Icon} of=${theme} /></button>`;
}

const LIVE = {
  live: ["ok", "Live"],
  polling: ["info", "Every 5 s"],
  offline: ["alarm", "No connection"],
};

function Header({ route, live, onKey }) {
  const here = (isHere) => (isHere ? "page" : null);
  const isOfBandit = route.page === "bandit" || route.page === "what-if";
  const path = isOfBandit ? `#/bandits/${encodeURIComponent(route.bandit)}` : "";
  const [kind, text] = LIVE[live] || [];
  return html`
    <header>
      <a class="brand" href="#/bandits"><img src="dashboard/icon.svg" alt="" width="22" height="22" />nextarm</a>
      <nav aria-label="Pages">
        <a href="#/bandits" aria-current=${here(route.page === "bandits")}>Bandits</a>
        ${isOfBandit ? html`
          <a href=${path} class="of-bandit" aria-current=${here(route.page === "bandit")}><${Name} of=${route.bandit} /></a>
          <a href="${path}/what-if" class="of-bandit" aria-current=${here(route.page === "what-if")}>What if</a>` : null}
        <a href="#/operations" aria-current=${here(route.page === "operations")}>Operations</a>
      </nav>
      <div class="tools">
        ${kind ? html`<span class="live ${kind}" role="status"><i aria-hidden="true"></i><span>${text}</span></span>` : null}
        <a class="icon wide" href="docs" title="HTTP API" aria-label="HTTP API"><span aria-hidden="true">{ }</span></a>
        <button class="icon" onClick=${onKey} aria-label="API key and tenant" title="API key and tenant"><${Icon} of="key" /></button>
        <${ThemeButton} />
      </div>
    </header>`;
}

const PAGES = { bandits: Bandits };
const LOADERS = {
  bandit: async () => (await import("./bandit.js")).Bandit,
  "what-if": async () => (await import("./whatif.js")).WhatIf,
  operations: async () => (await import("./operations.js")).Operations,
};
const AHEAD_MS = 1500; // after the first paint, which they would hold up

/** {Page, error} of a route: its component once that is loaded; error where it could not be. Loads the others a moment later. */
function usePage(name) {
  const [error, setError] = useState(null);
  const [, setLoaded] = useState("");
  const load = async (page) => {
    PAGES[page] ||= await LOADERS[page]();
  };
  useEffect(() => {
    let isHere = true;
    setError(null);
    if (!PAGES[name] && LOADERS[name]) {
      load(name).then(() => isHere && setLoaded(name), () => isHere && setError(new Error("This page could not be loaded. Reload it.")));
    }
    return () => (isHere = false);
  }, [name]);
  useEffect(() => {
    const timer = setTimeout(() => Object.keys(LOADERS).forEach((page) => load(page).catch(() => {})), AHEAD_MS);
    return () => clearTimeout(timer);
  }, []);
  return { Page: PAGES[name], error };
}

const TITLES = { bandits: "Bandits", operations: "Operations", unknown: "Not found" };

function App() {
  const [route, setRoute] = useState(routeOf(location.hash));
  const [live, setLive] = useState("");
  const [isAsking, setAsking] = useState(false);
  const [refused, setRefused] = useState(null);
  const [session, setSession] = useState(0);
  const main = useRef(null);
  const isFirst = useRef(true);

  useEffect(() => {
    const change = () => {
      setRoute(routeOf(location.hash));
      setLive("");
      setRefused(null);
    };
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);

  useEffect(() => {
    document.title = `${TITLES[route.page] || `${route.page === "what-if" ? "What if: " : ""}${route.bandit}`} · nextarm`;
    scrollTo(0, 0);
    if (!isFirst.current) main.current.focus({ preventScroll: true }); // where a new page begins
    isFirst.current = false;
    const here = document.querySelector("nav [aria-current]");
    if (here) here.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [route.page, route.bandit]);

  const renew = () => {
    setAsking(false);
    setRefused(null);
    setSession(session + 1);
  };
  const { Page, error } = usePage(route.page);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <${Header} route=${route} live=${live} onKey=${() => setAsking(true)} />
    <main id="main" ref=${main} tabindex="-1">
      ${refused
        ? html`<section class="card narrow"><h1>A key, please</h1>
            <${KeyForm} onDone=${renew} error=${credentials.key ? refused : null} /></section>`
        : Page
          ? html`<${Page} key=${`${session} ${route.page} ${route.bandit}`} bandit=${route.bandit} onLive=${setLive} onRefused=${setRefused} />`
          : LOADERS[route.page]
            ? error ? html`<${Failure} error=${error} />` : html`<${Loading} />`
            : html`<${Empty} title="There is no such page"><p><a href="#/bandits">All bandits</a></p><//>`}
    </main>
    ${isAsking ? html`
      <${Dialog} label="API key and tenant" onClose=${() => setAsking(false)}>
        <h2>API key and tenant</h2><${KeyForm} onDone=${renew} /><//>` : null}`;
}

render(html`<${App} />`, document.getElementById("app"));
