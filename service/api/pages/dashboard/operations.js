// Operations: is it ready, how fast does it answer, what waits, and what is wrong, with its fix.

import { html, useEffect, useRef } from "./vendor/preact.js";
import { ask, banditPath, inTurn } from "./api.js";
import { bytes, count, duration, number, plural } from "./format.js";
import { useResource } from "./live.js";
import { parse, routes, total } from "./metrics.js";
import { Failure, Figure, Loading, Name, Scroll, Status } from "./parts.js";

const WATCHED = 100;
/** Bandits whose health is looked at. */
const LISTED = 12;
/** Rows of a table. */

async function load(signal) {
  const [readiness, text] = await Promise.all([
    ask("GET", "readyz", { signal, accepted: [503] }),
    ask("GET", "metrics", { signal, as: "text" }),
  ]);
  return { readiness, metrics: parse(text), at: performance.now() / 1000 };
}

/** The health of the bandits that are not well. */
async function loadHealth(signal) {
  const { bandits, next } = await ask("GET", `v1/bandits?limit=${WATCHED}`, { signal });
  const ill = bandits.filter((item) => item.status !== "ok");
  const found = await inTurn(ill, async ({ name, fault }) => {
    const served = { name: "served", status: "alarm", detail: fault, fix: "See what readiness says, and the log of the service." };
    return fault ? { name, checks: [served] } : { name, ...(await ask("GET", banditPath(name, "/health"), { signal })) };
  });
  return { bandits: found, isAll: !next };
}

/** What is wrong: the service first, then its bandits, the worst first. */
function problemsOf(readiness, health) {
  const service = [
    ...readiness.reasons.map((detail) => ({ status: readiness.status === "ready" ? "warn" : "alarm", detail, fix: "The log of the service says more." })),
    ...readiness.damaged.map((detail) => ({
      status: "alarm",
      detail: `Its log cannot be folded: ${detail}`,
      fix: "Run nextarm digest on a copy of the store; restore the bandit from a backup where that fails, too.",
    })),
    ...readiness.notices.map((detail) => ({ status: "warn", detail, fix: "Change how the store is set up, as docs/faults.md says." })),
  ].map((item) => ({ ...item, bandit: "" }));
  const ofBandits = (health ? health.bandits : []).flatMap(({ name, checks }) =>
    checks.filter((check) => check.status !== "ok").map((check) => ({ ...check, bandit: name })));
  return [...service, ...ofBandits].sort((a, b) => (a.status === b.status ? 0 : a.status === "alarm" ? -1 : 1));
}

/** Requests per second between two looks at the counters; null before the second. */
function useRate(state) {
  const before = useRef(null);
  const rate = useRef(null);
  if (state && (!before.current || state.at > before.current.at + 1)) {
    const requests = total(state.metrics.get("nextarm_requests_total"), (labels) => labels.route !== "/metrics" && labels.route !== "/readyz");
    if (before.current) rate.current = Math.max(0, requests - before.current.requests) / (state.at - before.current.at);
    before.current = { requests, at: state.at };
  }
  return rate.current;
}

export function Operations({ onRefused, onLive }) {
  const { data, error } = useResource(load, [], { everyMs: 5_000 });
  const { data: health } = useResource(loadHealth, [], { everyMs: 30_000 });
  const rate = useRate(data);
  useEffect(() => {
    if (error && error.status === 401) onRefused(error);
    onLive(error ? "offline" : "polling");
  }, [error]);
  if (!data) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  const { readiness, metrics } = data;
  const served = routes(metrics);
  const decide = served.find((entry) => entry.method === "POST" && entry.route === "/v1/bandits/{name}/decisions");
  const memory = total(metrics.get("process_resident_memory_bytes"));
  const failures = total(metrics.get("nextarm_requests_total"), (labels) => labels.status >= "500");
  const isReady = readiness.status === "ready";
  const isStored = !readiness.reasons.some((reason) => reason.startsWith("storage"));
  return html`
    <div class="title"><h1>Operations</h1>
      <${Status} of=${isReady ? "ok" : "alarm"}>${isReady ? "Ready" : "Not ready"}<//>
      ${readiness.warming ? html`<span class="quiet">loading ${readiness.warming.join(", ")}</span>` : null}
    </div>
    <${Failure} error=${error} />
    <dl class="figures">
      <${Figure} label="Requests" value=${rate === null ? "…" : `${number(rate, 2)}/s`}>${count(total(metrics.get("nextarm_requests_total")))} in all<//>
      <${Figure} label="Decision, median" value=${duration(decide ? decide.p50 : null)}>${decide ? `99 %: ${duration(decide.p99)}` : "none yet"}<//>
      <${Figure} label="Answers 5xx" value=${count(failures)}>since the process began<//>
      <${Figure} label="Open decisions" value=${count(total(metrics.get("nextarm_pending")))}>wait for their outcome<//>
      <${Figure} label="Storage" value=${isStored ? "answers" : "is away"}>${readiness.notices.length ? plural(readiness.notices.length, "notice") : "no notice"}<//>
      <${Figure} label="Lag" value=${plural(readiness.lag, "event")}>of the last bandit<//>
      ${memory ? html`<${Figure} label="Memory" value=${bytes(memory)}>${cpu(metrics)}<//>` : null}
    </dl>
    <${Alarms} items=${problemsOf(readiness, health)} health=${health} />
    <${Requests} served=${served} />
    <div class="columns">
      <${Bandits} metrics=${metrics} />
      <${Embedders} metrics=${metrics} />
      <${Refusals} metrics=${metrics} />
    </div>`;
}

function cpu(metrics) {
  const start = total(metrics.get("process_start_time_seconds"));
  const used = total(metrics.get("process_cpu_seconds_total"));
  const up = Date.now() / 1000 - start;
  return start ? `up ${duration(up)}, ${number((100 * used) / up, 2)} % of a core` : "";
}

function Alarms({ items, health }) {
  return html`
    <section class="card" aria-labelledby="alarms">
      <div class="card-head"><h2 id="alarms">What to look at</h2>
        ${health && !health.isAll ? html`<small>of the first ${WATCHED} bandits</small>` : null}</div>
      ${!health ? html`<${Loading} />` : items.length === 0 ? html`<${Status} of="ok">Nothing. Every check is well.<//>` : html`
        <ul class="alarms">${items.slice(0, 100).map((item) => html`
          <li>
            <${Status} of=${item.status}><strong>${item.bandit
              ? html`<a href="#/bandits/${encodeURIComponent(item.bandit)}"><${Name} of=${item.bandit} /></a>` : "Service"}</strong>
              ${item.name ? html`<span class="quiet"> ${item.name.replaceAll("_", " ")}</span>` : null}<//>
            <p>${item.detail}</p>
            ${item.fix ? html`<p class="fix"><span>Fix</span> ${item.fix}</p>` : null}
          </li>`)}</ul>`}
    </section>`;
}

function Requests({ served }) {
  return html`
    <section class="card flush" aria-labelledby="requests">
      <div class="card-head"><h2 id="requests">Requests</h2><small>of this process, since it began</small></div>
      <${Scroll} label="Requests">
        <table>
          <caption class="sr">Requests by route</caption>
          <thead><tr><th scope="col">Route</th><th scope="col" class="number">Requests</th><th scope="col" class="number">Median</th>
            <th scope="col" class="number">99 %</th><th scope="col" class="number">5xx</th></tr></thead>
          <tbody>${served.slice(0, LISTED).map((entry) => html`
            <tr><th scope="row" class="route"><span class="method">${entry.method}</span> <code>${entry.route}</code></th>
              <td class="number">${count(entry.count)}</td><td class="number">${duration(entry.p50)}</td>
              <td class="number">${duration(entry.p99)}</td><td class="number">${count(entry.errors)}</td></tr>`)}</tbody>
        </table>
      <//>
    </section>`;
}

const byLabel = (samples, label) => new Map((samples || []).map((sample) => [sample.labels[label], sample.value]));

function Bandits({ metrics }) {
  const offsets = byLabel(metrics.get("nextarm_offset"), "bandit");
  const [lag, unready, repeated] = ["nextarm_fold_lag", "nextarm_unready", "nextarm_duplicates_total"].map((name) => byLabel(metrics.get(name), "bandit"));
  const rows = [...offsets.keys()].sort((a, b) => (lag.get(b) || 0) - (lag.get(a) || 0) || offsets.get(b) - offsets.get(a)).slice(0, LISTED);
  if (!rows.length) return null;
  return html`
    <section class="card flush" aria-labelledby="logs">
      <div class="card-head"><h2 id="logs">Logs</h2><small>${plural(offsets.size, "bandit")} in memory</small></div>
      <${Scroll} label="Logs">
        <table><caption class="sr">Logs</caption>
          <thead><tr><th scope="col">Bandit</th><th scope="col" class="number">Offset</th><th scope="col" class="number">Lag</th>
            <th scope="col" class="number">Unprepared</th><th scope="col" class="number">Repeated</th></tr></thead>
          <tbody>${rows.map((name) => html`
            <tr><th scope="row"><${Name} of=${name} /></th><td class="number">${count(offsets.get(name))}</td>
              <td class="number">${count(lag.get(name) || 0)}</td><td class="number">${count(unready.get(name) || 0)}</td>
              <td class="number">${count(repeated.get(name) || 0)}</td></tr>`)}</tbody>
        </table>
      <//>
    </section>`;
}

function Embedders({ metrics }) {
  const names = [...byLabel(metrics.get("nextarm_embedded_total"), "embedder").keys()];
  if (!names.length) return null;
  const of = (name) => byLabel(metrics.get(name), "embedder");
  const columns = ["nextarm_embedding_waiting", "nextarm_embedded_total", "nextarm_embedding_cached_total", "nextarm_embedding_refused_total"].map(of);
  return html`
    <section class="card flush" aria-labelledby="embedders">
      <div class="card-head"><h2 id="embedders">Embedding queue</h2></div>
      <${Scroll} label="Embedding queue">
        <table><caption class="sr">Embedding queue</caption>
          <thead><tr><th scope="col">Embedder</th><th scope="col" class="number">Waiting</th><th scope="col" class="number">Embedded</th>
            <th scope="col" class="number">Cached</th><th scope="col" class="number">Refused</th></tr></thead>
          <tbody>${names.map((name) => html`<tr><th scope="row">${name}</th>
            ${columns.map((values) => html`<td class="number">${count(values.get(name))}</td>`)}</tr>`)}</tbody>
        </table>
      <//>
    </section>`;
}

function Refusals({ metrics }) {
  const rows = (metrics.get("nextarm_problems_total") || []).sort((a, b) => b.value - a.value).slice(0, LISTED);
  if (!rows.length) return null;
  return html`
    <section class="card flush" aria-labelledby="refusals">
      <div class="card-head"><h2 id="refusals">Refusals</h2><small>by the code of their problem</small></div>
      <${Scroll} label="Refusals">
        <table><caption class="sr">Refusals</caption>
          <thead><tr><th scope="col">Code</th><th scope="col" class="number">Answers</th></tr></thead>
          <tbody>${rows.map(({ labels, value }) => html`<tr><th scope="row"><code>${labels.code}</code></th><td class="number">${count(value)}</td></tr>`)}</tbody>
        </table>
      <//>
    </section>`;
}
