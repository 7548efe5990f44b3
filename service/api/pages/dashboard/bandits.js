// Bandits: one row each, with what changed against a week ago.

import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, banditPath, inTurn, query } from "./api.js";
import { colorsOf } from "./colors.js";
import { count, number, percent, plural, signed } from "./format.js";
import { useResource } from "./live.js";
import { Change, Empty, Failure, Loading, Name, Scroll, Sparkline, Status } from "./parts.js";
import { foldArms, shares } from "./series.js";
import { loadTrend, trendOf } from "./summary.js";

const PAGE = 50;

/** The page of names from `after` on, with what is needed for a row each. */
async function load(after, signal) {
  const page = await ask("GET", `v1/bandits${query({ after, limit: PAGE })}`, { signal });
  const rows = await inTurn(page.bandits, async (item) => {
    try {
      const [bandit, health, series] = await Promise.all([
        ask("GET", banditPath(item.name), { signal }),
        ask("GET", banditPath(item.name, "/health"), { signal }),
        loadTrend(item.name, signal),
      ]);
      return { name: item.name, bandit, health, series };
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) throw error;
      return { name: item.name, error };
    }
  });
  return { rows, next: page.next };
}

function check(health, name) {
  return health.checks.find((item) => item.name === name);
}

function Alarm({ health }) {
  const bad = health.checks.filter((item) => item.status !== "ok");
  const text = bad.length ? bad.map((item) => item.name.replaceAll("_", " ")).join(", ") : "All well";
  return html`<span title=${bad.map((item) => item.detail).join("\n") || null}><${Status} of=${health.status}>${text}<//></span>`;
}

function Row({ row }) {
  const link = html`<a href="#/bandits/${encodeURIComponent(row.name)}"><${Name} of=${row.name} /></a>`;
  if (row.error) {
    return html`<tr><th scope="row">${link}</th><td colspan="6"><${Status} of="alarm">${row.error.message}<//></td></tr>`;
  }
  const { bandit, health, series } = row;
  const color = colorsOf(bandit.arms);
  const { now, before } = series ? trendOf(series.week) : { now: {}, before: {} };
  const learned = bandit.arms.reduce((sum, arm) => sum + arm.outcomes, 0);
  const cost = bandit.arms.reduce((sum, arm) => sum + arm.total_cost, 0);
  const overall = bandit.arms.reduce((sum, arm) => sum + (arm.mean_reward === null ? 0 : arm.mean_reward * arm.outcomes), 0) / learned;
  const isReward = bandit.arms.some((arm) => arm.mean_reward !== null);
  const mean = now.mean ?? (isReward ? overall : null);
  const missing = check(health, "missing_outcomes");
  const folded = series && foldArms(series.recent, color);
  const active = bandit.arms.filter((arm) => arm.active).length;
  return html`
    <tr>
      <th scope="row">${link}<small>${bandit.policy.kind} · ${plural(active, "arm")}</small></th>
      <td class="number">${count(bandit.decisions)}<small>${plural(bandit.open, "open", "open")}</small></td>
      <td class="number">${number(mean)}<small>
        ${before.mean === null || before.mean === undefined || now.mean === null
          ? "of all"
          : html`<${Change} value=${now.mean - before.mean} text="${signed(now.mean - before.mean, 2)} in a week" />`}</small></td>
      <td class="wide">${folded
        ? html`<${Sparkline} columns=${shares(folded.buckets, folded.arms, 1.5)} colors=${folded.arms.map(color)}
            label="Shares of the arms over time" />`
        : html`<${ShareBar} arms=${bandit.arms} color=${color} />`}</td>
      <td class="number wide">${number(learned ? cost / learned : null)}</td>
      <td class="number wide">${missing ? percent(missing.value) : "–"}</td>
      <td><${Alarm} health=${health} /></td>
    </tr>`;
}

/** The shares of the last decisions as one bar. */
function ShareBar({ arms, color }) {
  let x = 0;
  const parts = arms.filter((arm) => arm.share > 0).map((arm) => {
    const part = html`<rect class=${color(arm.name)} x=${120 * x} width=${120 * arm.share} height="12" />`;
    x += arm.share;
    return part;
  });
  return parts.length
    ? html`<svg class="sparkline" viewBox="0 0 120 12" width="120" height="12" role="img" aria-label="Shares of the last decisions">${parts}</svg>`
    : html`<span class="quiet">–</span>`;
}

export function Bandits({ onRefused, onLive }) {
  const [filter, setFilter] = useState("");
  const [after, setAfter] = useState("");
  const { data, error } = useResource((signal) => load(after, signal), [after], { everyMs: 10_000 });
  useEffect(() => {
    if (error && error.status === 401) onRefused(error);
    onLive(error ? "offline" : "");
  }, [error]);
  if (!data) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  if (!data.rows.length && !after) return html`<h1 class="sr">Bandits</h1><${NoBandit} />`;
  const rows = data.rows.filter((row) => row.name.includes(filter.trim().toLowerCase()));
  const alarms = data.rows.filter((row) => row.error || row.health.status !== "ok").length;
  return html`
    <div class="title">
      <h1>Bandits</h1>
      <p class="quiet">${plural(data.rows.length, "bandit")}${data.next || after ? " on this page" : ""} ·${" "}
        ${alarms ? `${alarms} to look at` : "all well"}</p>
      <label class="search"><span class="sr">Filter by name</span>
        <input type="search" placeholder="Filter by name" value=${filter} onInput=${(event) => setFilter(event.target.value)} /></label>
    </div>
    <${Failure} error=${error} />
    <section class="card flush">
      <${Scroll} label="Bandits">
        <table class="bandits">
          <caption class="sr">Bandits</caption>
          <thead><tr>
            <th scope="col">Bandit</th><th scope="col" class="number">Decisions</th><th scope="col" class="number">Reward</th>
            <th scope="col" class="wide">Shares</th><th scope="col" class="number wide">Cost per decision</th>
            <th scope="col" class="number wide">Missing</th><th scope="col">Health</th>
          </tr></thead>
          <tbody>${rows.map((row) => html`<${Row} key=${row.name} row=${row} />`)}</tbody>
        </table>
      <//>
      ${rows.length ? null : html`<p class="quiet pad">No name on this page has “${filter}” in it.</p>`}
    </section>
    ${data.next || after ? html`<div class="actions">
      ${after ? html`<button onClick=${() => setAfter("")}>First page</button>` : null}
      ${data.next ? html`<button onClick=${() => setAfter(data.next)}>Next page</button>` : null}</div>` : null}`;
}

const QUICK_START = (origin) => `curl -X PUT ${origin}v1/bandits/demo -H 'content-type: application/json' -d '
  {"arms": [{"name": "small", "price": 0.1}, {"name": "large", "price": 1.0}]}'

curl -X POST ${origin}v1/bandits/demo/decisions -H 'content-type: application/json' -d '{"id": "first"}'

curl -X PUT ${origin}v1/bandits/demo/decisions/first/outcome -H 'content-type: application/json' -d '{"reward": 0.8}'`;

const NoBandit = () => html`
  <${Empty} title="No bandit yet">
    <p>Create one, ask it for a decision, and report what came of it; this page shows it within seconds.</p>
    <pre tabindex="0" aria-label="Commands">${QUICK_START(new URL(".", document.baseURI).href)}</pre>
  <//>`;
