// Bandits: one row each, with what changed against a week ago.

import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, banditPath, inTurn, query } from "./api.js";
import { colorsOf } from "./colors.js";
import { count, duration, number, percent, plural } from "./format.js";
import { useResource } from "./live.js";
import { Change, Empty, Failure, Loading, Name, Scroll, Sparkline, Status } from "./parts.js";
import { foldArms, shares } from "./series.js";
import { loadOnOneAxis, loadWeek, trendOf } from "./summary.js";

const PAGE = 50;

/** The colors of a bandit's arms, and how it went for eight days; null where that cannot be said now. */
async function loadTrend(name, signal) {
  try {
    const [{ arms }, week] = await Promise.all([ask("GET", banditPath(name), { signal }), loadWeek(name, signal)]);
    return { color: colorsOf(arms), week };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null;
  }
}

/** {axis, rows}: what the rows show beside the list, by name, and the axis of time that their shares have in common. */
async function loadTrends(names, signal) {
  const trends = new Map(await inTurn(names, async (name) => [name, await loadTrend(name, signal)]));
  const drawn = await loadOnOneAxis(new Map([...trends].map(([name, trend]) => [name, trend && trend.week])), signal);
  const rows = [...trends].filter(([, trend]) => trend).map(([name, { color, week }]) => [
    name, { color, day: trendOf(week), series: drawn && drawn.series.get(name) }]);
  return { axis: drawn && drawn.axis, rows: new Map(rows) };
}

function Row({ item, more, axis }) {
  const link = html`<a href="#/bandits/${encodeURIComponent(item.name)}"><${Name} of=${item.name} /></a>`;
  if (item.fault) return html`<tr><th scope="row">${link}</th><td colspan="6"><${Status} of="alarm">${item.fault}<//></td></tr>`;
  const day = more && more.day;
  const reward = day && day.mean !== null ? day.mean : item.reward;
  const since = day && day.change ? html`<${Change} ...${day.change} />` : reward === null ? "" : day && day.mean !== null ? "today" : "of the last 1,000";
  return html`
    <tr>
      <th scope="row">${link}<small>${item.policy.kind} · ${plural(item.arms, "arm")}</small></th>
      <td class="number">${count(item.decisions)}<small>${day ? `${count(day.decisions)} today` : `${count(item.open)} open`}</small></td>
      <td class="number">${number(reward)}<small>${since}</small></td>
      <td class="wide">${more && more.series ? html`<${Shares} ...${more} axis=${axis} />` : null}</td>
      <td class="number wide">${number(item.cost_per_decision)}</td>
      <td class="number wide">${percent(item.missing ?? NaN)}</td>
      <td><${Status} of=${item.status}>${item.failing.length
        ? html`<span class="long">${item.failing.map((name) => name.replaceAll("_", " ")).join(", ")}</span><span class="short" aria-hidden="true">${item.failing.length}</span>`
        : "well"}<//></td>
    </tr>`;
}

function Shares({ color, series, axis }) {
  const { arms, buckets } = foldArms(series, color);
  const begins = buckets.map((bucket) => bucket.at);
  const times = [...begins, begins[begins.length - 1] + series.width_s];
  return html`<${Sparkline} columns=${shares(buckets, arms, 1.5)} times=${times} axis=${axis} colors=${arms.map(color)} label="Shares of the arms over time" />`;
}

export function Bandits({ onRefused, onLive }) {
  const [filter, setFilter] = useState("");
  const [after, setAfter] = useState("");
  const { data, error } = useResource((signal) => ask("GET", `v1/bandits${query({ after, limit: PAGE })}`, { signal }), [after], { everyMs: 5_000 });
  const names = data ? data.bandits.map((item) => item.name) : [];
  const { data: trends } = useResource((signal) => loadTrends(names, signal), [names.join()], { everyMs: 60_000 });
  useEffect(() => {
    if (error && error.status === 401) onRefused(error);
    onLive(error ? "offline" : "");
  }, [error]);
  if (!data) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  if (!names.length && !after) return html`<h1 class="sr">Bandits</h1><${NoBandit} />`;
  const shown = data.bandits.filter((item) => item.name.includes(filter.trim().toLowerCase()));
  const alarms = data.bandits.filter((item) => item.status !== "ok").length;
  return html`
    <div class="title">
      <h1>Bandits</h1>
      <p class="quiet">${plural(names.length, "bandit")}${data.next || after ? " on this page" : ""} · ${alarms ? `${alarms} to look at` : "all well"}</p>
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
            <th scope="col" class="wide">Shares${trends && trends.axis ? html`, last ${duration(trends.axis.end - trends.axis.begin)}` : ""}</th><th scope="col" class="number wide">Cost per decision</th>
            <th scope="col" class="number wide">Missing</th><th scope="col">Health</th>
          </tr></thead>
          <tbody>${shown.map((item) => html`<${Row} key=${item.name} item=${item} more=${trends && trends.rows.get(item.name)} axis=${trends && trends.axis} />`)}</tbody>
        </table>
      <//>
      ${shown.length ? null : html`<p class="quiet pad">No name on this page has “${filter}” in it.</p>`}
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
