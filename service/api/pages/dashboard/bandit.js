// Bandit: key figures, shares and rewards over time, arms, decisions.

import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, banditPath } from "./api.js";
import { Arms } from "./arms.js";
import { CurveChart, SharesChart } from "./chart.js";
import { colorsOf } from "./colors.js";
import { Decisions } from "./decisions.js";
import { count, number, percent, signed } from "./format.js";
import { useResource, watch } from "./live.js";
import { Change, Empty, Failure, Figure, Loading, Name, Status } from "./parts.js";
import { bandwidth, foldArms, meanOf, OTHER, scoreOf, shares, signalOf, smooth, smoothObjective, totals } from "./series.js";
import { loadSeries, loadWeek, trendOf } from "./summary.js";

/** Scores that are drawn over time where a policy learns no reward. */
const SCORES = ["estimate", "weight", "bonus"];

const RANGES = { "1 h": 3600, "24 h": 86_400, "7 d": 7 * 86_400, "90 d": 90 * 86_400 };

/** The shortest range that shows the whole life of a bandit, at most 7 days. */
function rangeOf(bandit) {
  const age = (Date.now() - Date.parse(bandit.created_at)) / 1000;
  return age < 3600 ? "1 h" : age < 86_400 ? "24 h" : "7 d";
}

export function Bandit({ bandit: name, onRefused, onLive }) {
  const [events, setEvents] = useState(0);
  const [wanted, setRange] = useState("");
  const get = (rest) => (signal) => ask("GET", banditPath(name, rest), { signal });
  const { data: bandit, error, refresh } = useResource(get(""), [name], { everyMs: 30_000, gapMs: 2000 });
  const { data: health, refresh: refreshHealth } = useResource(get("/health"), [name], { everyMs: 30_000, gapMs: 5000 });
  const range = wanted || (bandit ? rangeOf(bandit) : "");
  const { data: series, refresh: refreshSeries } = useResource(
    async (signal) => (range ? loadSeries(name, RANGES[range], signal) : null), [name, range], { everyMs: 30_000, gapMs: 3000 });
  const { data: week } = useResource((signal) => loadWeek(name, signal), [name], { everyMs: 60_000 });
  useEffect(() => {
    if (error && error.status === 401) onRefused(error);
  }, [error]);
  useEffect(() => watch(name, {
    onState: onLive,
    onChange: () => {
      setEvents((before) => before + 1);
      refresh();
      refreshSeries();
      refreshHealth();
    },
  }), [name]);
  if (!bandit) return error ? html`<h1><${Name} of=${name} /></h1><${Failure} error=${error} />` : html`<${Loading} />`;
  const color = colorsOf(bandit.arms);
  return html`
    <div class="title"><h1><${Name} of=${name} /></h1><span class="chip">${bandit.policy.kind}</span>
      ${health ? html`<a href="#health" onClick=${jump} class="plain"><${Status} of=${health.status}>${healthText(health)}<//></a>` : null}
      <div class="push choices" role="group" aria-label="Time shown">${Object.keys(RANGES).map((item) => html`
        <button aria-pressed=${item === range} onClick=${() => setRange(item)}>${item}</button>`)}</div></div>
    <${Failure} error=${error} />
    <${Figures} bandit=${bandit} health=${health} series=${series} week=${week} range=${range} />
    ${series ? html`<${Charts} bandit=${bandit} series=${series} color=${color} />` : null}
    <${Arms} bandit=${bandit} series=${series} color=${color} />
    <${Decisions} name=${name} bandit=${bandit} color=${color} events=${events} />
    ${health ? html`<${Health} health=${health} notices=${bandit.notices} />` : null}`;
}

const jump = (event) => {
  event.preventDefault();
  const target = document.getElementById("health");
  target.scrollIntoView({ block: "start" });
  target.focus();
};

function healthText(health) {
  const bad = health.checks.filter((check) => check.status !== "ok");
  return bad.length ? bad.map((check) => check.name.replaceAll("_", " ")).join(", ") : "All well";
}

function Figures({ bandit, health, series, week, range }) {
  const check = (name) => health && health.checks.find((item) => item.name === name);
  const total = series ? totals(series.buckets) : null;
  const reward = total ? meanOf(total.signals.reward) : { mean: null };
  const cost = total ? meanOf(total.signals.cost) : { mean: null };
  const change = week ? trendOf(week).change : null;
  const { gain } = bandit.report;
  const missing = check("missing_outcomes");
  const pays = check("prompt_pays");
  const entropy = check("entropy");
  return html`
    <dl class="figures">
      <${Figure} label="Decisions" value=${count(bandit.decisions)}>${count(bandit.open)} open${total ? `, ${count(total.decisions)} in ${range}` : ""}<//>
      ${bandit.objective ? html`
        <${Figure} label="Reward, ${range}" value=${number(reward.mean)}>${change === null ? withErrorOnly(reward) : html`<${Change} ...${change} />`}<//>
        <${Figure} label="Gain over the best arm" hint="Per decision, beyond always playing the best single arm; with a 95 % interval" value=${gain && gain.value !== null ? signed(gain.value) : "–"}>
          ${gain && gain.interval ? `${signed(gain.interval[0], 2)} to ${signed(gain.interval[1], 2)}` : "not known yet"}<//>` : null}
      <${Figure} label="Cost per decision, ${range}" value=${number(cost.mean)}>${bandit.budget ? `budget ${number(bandit.budget.per_decision)}` : withErrorOnly(cost)}<//>
      ${missing ? html`<${Figure} label="Missing outcomes" value=${percent(missing.value)}>of those closed of late<//>` : null}
      ${pays && typeof pays.value === "number"
        ? html`<${Figure} label="The prompt matters" value=${percent(pays.value)}>probability<//>`
        : entropy ? html`<${Figure} label="Spread over the arms" value=${percent(entropy.value)}>100 %: all equally often<//>` : null}
    </dl>`;
}

const withErrorOnly = ({ error, count: n }) => (error ? `± ${number(error, 2)}` : `${count(n)} outcomes`);

function Charts({ bandit, series, color }) {
  const [signal, setSignal] = useState("");
  const [isWantedByArm, setByArm] = useState(false);
  const { arms, buckets } = foldArms(series, color);
  if (!arms.length) {
    return html`<section class="card"><${Empty} title="Nothing in this time"><p class="quiet">Choose a longer one, or ask for a decision.</p><//></section>`;
  }
  const times = buckets.map((bucket) => bucket.at);
  const found = Object.keys(totals(buckets).signals).filter((name) => bandit.objective || name !== "cost" || bandit.arms.some((arm) => arm.price));
  const scored = bandit.objective ? [] : SCORES.filter((score) => arms.some((arm) => scoreOf(buckets, score, arm).some((value) => value !== null)));
  const weighed = bandit.objective && Object.entries(bandit.objective).some(([name, weight]) => weight !== (name === "reward" ? 1 : 0));
  const names = [...scored, ...(weighed ? ["objective"] : []), ...["reward", "cost"].filter((name) => found.includes(name)), ...found.filter((name) => name !== "reward" && name !== "cost")];
  const shown = names.includes(signal) ? signal : names.includes("reward") ? "reward" : names[0];
  const width = bandwidth(buckets.map((bucket) => totals([bucket]).outcomes));
  const isScore = scored.includes(shown);
  const isByArm = isWantedByArm || isScore; // one decision has one estimate per arm, and none of all
  const curve = (arm) => ({
    arm,
    ...(isScore ? { middle: scoreOf(buckets, shown, arm) } : shown === "objective" ? smoothObjective(bandit.objective, arm === null ? buckets : buckets.map((bucket) => ({ arms: { [arm]: bucket.arms[arm] } })), width)
      : smooth(signalOf(buckets, shown, arm), arm === null ? width : bandwidth(buckets.map((bucket) => (bucket.arms[arm] || {}).outcomes || 0)))),
  });
  const curves = isByArm ? arms.filter((arm) => arm !== OTHER).map(curve) : [curve(null)];
  return html`
    <div class="charts">
      <section class="card" aria-labelledby="shares"><div class="card-head"><h2 id="shares">Shares</h2></div>
        <${SharesChart} times=${times} arms=${arms} columns=${shares(buckets, arms, Math.max(1.2, Math.min(width, 6)))} color=${color} /></section>
      ${shown ? html`
        <section class="card" aria-labelledby="curve"><div class="card-head"><h2 id="curve">${capital(shown)}</h2>
            <div class="push row-tools">
              ${names.length > 1 ? html`<label><span class="sr">Signal</span><select value=${shown} onChange=${(event) => setSignal(event.target.value)}>
                ${names.map((name) => html`<option value=${name} selected=${name === shown}>${name}</option>`)}</select></label>` : null}
              ${isScore ? null : html`<div class="choices" role="group" aria-label="Curves"><button aria-pressed=${!isByArm} onClick=${() => setByArm(false)}>All</button>
                <button aria-pressed=${isByArm} onClick=${() => setByArm(true)}>By arm</button></div>`}</div></div>
          <${CurveChart} key=${shown} times=${times} curves=${curves} color=${color} label=${capital(shown)} /></section>` : null}
    </div>`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1).replaceAll("_", " ");

function Health({ health, notices }) {
  const checks = [...health.checks].sort((a, b) => (b.status !== "ok") - (a.status !== "ok"));
  const others = notices.filter((notice) => !checks.some((check) => notice.includes(check.detail)));
  return html`
    <section class="card" aria-labelledby="health"><div class="card-head"><h2 id="health" tabindex="-1">Health</h2></div>
      ${others.length ? html`<ul class="alarms notices">${others.map((notice) => html`<li><${Status} of="warn">${notice}<//></li>`)}</ul>` : null}
      <ul class="checks">${checks.map((check) => html`
        <li><${Status} of=${check.status}><strong>${check.name.replaceAll("_", " ")}</strong><//>
          <p>${check.detail}${check.status !== "ok" && check.fix ? html` <span class="fix"><span>Fix</span>${check.fix}</span>` : null}</p></li>`)}</ul>
    </section>`;
}
