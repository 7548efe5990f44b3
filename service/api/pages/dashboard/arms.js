// The arms of a bandit: what each earned and cost in the time that is shown.

import { html, useState } from "./vendor/preact.js";
import { count, decimalsOf, number, percent, plural, withError } from "./format.js";
import { Arm, Scroll, Status } from "./parts.js";
import { meanOf, totals } from "./series.js";

const FEW = 20;

function rowsOf(bandit, series) {
  return bandit.arms.map((arm) => {
    const total = series ? totals(series.buckets, arm.name) : null;
    const reward = total ? meanOf(total.signals.reward) : { mean: null };
    const cost = total ? meanOf(total.signals.cost).mean : null;
    const mean = reward.mean ?? arm.mean_reward;
    const perOutcome = cost ?? (arm.outcomes ? arm.total_cost / arm.outcomes : arm.price);
    return { ...arm, mean, error: reward.mean === null ? null : reward.error, cost: perOutcome, worth: mean !== null && perOutcome > 0 ? mean / perOutcome : null };
  });
}

const COLUMNS = [
  ["name", "Arm", ""],
  ["share", "Share", "share"],
  ["pulls", "Decisions", "number wide"],
  ["mean", "Reward ± s.e.", "number"],
  ["cost", "Cost", "number wide"],
  ["worth", "Reward per cost", "number wide"],
  ["pending", "Open", "number wide"],
];

export function Arms({ bandit, series, color }) {
  const [sort, setSort] = useState({ by: "share", isDown: true });
  const [filter, setFilter] = useState("");
  const [isAll, setAll] = useState(false);
  const value = (row) => row[sort.by] ?? -Infinity;
  const rows = rowsOf(bandit, series)
    .filter((row) => row.name.toLowerCase().includes(filter.trim().toLowerCase()))
    .sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (sort.isDown ? -1 : 1));
  const shown = isAll ? rows : rows.slice(0, FEW);
  const decimals = Math.min(...rows.map((row) => decimalsOf(row.error)).filter(Boolean)); // of the widest error, the same in all rows
  const order = (by) => () => setSort({ by, isDown: sort.by === by ? !sort.isDown : by !== "name" });
  return html`
    <section class="card flush" aria-labelledby="arms">
      <div class="card-head"><h2 id="arms">Arms</h2><small>share: of the last 1,000 decisions; s.e.: standard error of the mean in the time shown above</small>
        ${bandit.arms.length > FEW ? html`<label class="push"><span class="sr">Filter arms by name</span>
          <input type="search" placeholder="Filter" value=${filter} onInput=${(event) => setFilter(event.target.value)} /></label>` : null}</div>
      <${Scroll} label="Arms">
        <table class="arms"><caption class="sr">Arms</caption>
          <thead><tr>${COLUMNS.map(([by, label, kind]) => html`
            <th scope="col" class=${kind} aria-sort=${sort.by === by ? (sort.isDown ? "descending" : "ascending") : null}>
              <button onClick=${order(by)}>${label}${sort.by === by ? html`<span aria-hidden="true"> ${sort.isDown ? "↓" : "↑"}</span>` : null}</button></th>`)}
            <th scope="col" class="wide">State</th></tr></thead>
          <tbody>${shown.map((row) => html`
            <tr key=${row.name}>
              <th scope="row"><${Arm} of=${row.name} color=${color(row.name)} /></th>
              <td class="share"><div><svg class="bar chosen ${color(row.name)}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                <rect class="solid" width=${100 * row.share} height="8" /></svg><span>${percent(row.share)}</span></div></td>
              <td class="number wide">${count(row.pulls)}</td>
              <td class="number">${withError(row.mean, row.error, decimals)}</td>
              <td class="number wide">${number(row.cost)}</td>
              <td class="number wide">${number(row.worth)}</td>
              <td class="number wide">${count(row.pending)}</td>
              <td class="wide"><${State} arm=${row} /></td>
            </tr>`)}</tbody>
        </table>
      <//>
      ${rows.length > FEW && !isAll ? html`<div class="actions pad"><button onClick=${() => setAll(true)}>Show all ${plural(rows.length, "arm")}</button></div>` : null}
    </section>`;
}

function State({ arm }) {
  if (!arm.active) return html`<span class="quiet">retired</span>`;
  if (arm.cooling_until) return html`<${Status} of="warn">cooling down<//>`;
  if (arm.errors) return html`<span class="quiet">${plural(arm.errors, "error")}</span>`;
  return html`<span class="quiet">active</span>`;
}
