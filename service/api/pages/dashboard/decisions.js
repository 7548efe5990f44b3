// The last decisions of a bandit with why, filters, and a drawer with all of one.

import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, banditPath, query } from "./api.js";
import { fullTime, NOTHING, number, percent, time } from "./format.js";
import { Icon } from "./icons.js";
import { useResource } from "./live.js";
import { Arm, Dialog, Failure, Loading, Name, Scroll, Status } from "./parts.js";
import { Bar, scaleOf, termsOf, Why } from "./why.js";

const PAGE = 15;
const STATES = { open: "info", partial: "info", observed: "ok", expired: "warn", cancelled: "warn" };

export function Decisions({ name, bandit, color, events }) {
  const [filter, setFilter] = useState({ state: "", arm: "", session: "" });
  const [path, setPath] = useState([]);
  const [shown, setShown] = useState(null);
  const before = path.length ? path[path.length - 1] : "";
  const { data, error, refresh } = useResource(
    (signal) => ask("GET", banditPath(name, `/decisions${query({ ...filter, before, limit: PAGE })}`), { signal }), [name, filter, before]);
  useEffect(() => {
    if (events && !before) refresh();
  }, [events]);
  const change = (field) => (event) => {
    setFilter({ ...filter, [field]: event.target.value });
    setPath([]);
  };
  const find = (event) => {
    event.preventDefault();
    const id = new FormData(event.target).get("id").trim();
    if (id) setShown(id);
  };
  const kind = bandit.policy.kind;
  return html`
    <section class="card flush" aria-labelledby="decisions">
      <div class="card-head"><h2 id="decisions">Decisions</h2><small>newest first; solid: estimate, pale: what uncertainty adds, full color: chosen</small></div>
      <div class="filters">
        <label><span>State</span><select onChange=${change("state")}>
          <option value="">all</option>${Object.keys(STATES).map((state) => html`<option value=${state} selected=${state === filter.state}>${state}</option>`)}</select></label>
        <label><span>Arm</span><select onChange=${change("arm")}>
          <option value="">all</option>${bandit.arms.map((arm) => html`<option value=${arm.name} selected=${arm.name === filter.arm}>${arm.name}</option>`)}</select></label>
        <label><span>Session</span><input type="search" value=${filter.session} onChange=${change("session")} maxlength="128" /></label>
        <form onSubmit=${find}><label><span>Find by id</span><input type="search" name="id" maxlength="64" /></label></form>
      </div>
      <${Failure} error=${error} />
      ${data === null ? (error ? null : html`<${Loading} />`) : data.decisions.length === 0 ? html`
        <p class="quiet pad">${data.next_before ? "None here; older ones may match." : "None."}</p>` : html`
        <${Scroll} label="Decisions">
          <table class="decisions"><caption class="sr">Decisions, newest first</caption>
            <thead><tr><th scope="col">Decision</th><th scope="col">Arm</th><th scope="col" class="why-cell">Why</th>
              <th scope="col" class="number wide">Propensity</th><th scope="col" class="number">Reward</th></tr></thead>
            <tbody>${data.decisions.map((item) => html`
              <tr key=${item.id}>
                <th scope="row"><button class="link mono id" onClick=${() => setShown(item.id)} aria-haspopup="dialog">${item.id}</button>
                  <small title=${fullTime(item.decided_at)}>${time(item.decided_at)}</small></th>
                <td>${item.arm === null ? html`<span class="quiet">stop</span>` : html`<${Arm} of=${item.arm} color=${color(item.arm)} />`}</td>
                <td class="why-cell"><${Why} decision=${item} kind=${kind} color=${color} /></td>
                <td class="number wide">${item.sticky ? html`<span class="quiet">session</span>` : percent(item.propensity)}</td>
                <td class="number"><${Result} item=${item} /></td>
              </tr>`)}</tbody>
          </table>
        <//>`}
      ${data && (data.next_before || path.length) ? html`<div class="actions pad">
        ${path.length ? html`<button onClick=${() => setPath(path.slice(0, -1))}>Newer</button>` : null}
        ${data.next_before ? html`<button onClick=${() => setPath([...path, data.next_before])}>Older</button>` : null}</div>` : null}
      ${shown ? html`<${Drawer} key=${shown} name=${name} id=${shown} kind=${kind} color=${color} events=${events} onClose=${() => setShown(null)}
        onOpen=${setShown} />` : null}
    </section>`;
}

function Result({ item }) {
  if (item.error) return html`<span title=${item.error}><${Status} of="alarm">failed<//></span>`;
  if (item.state === "observed" && item.reward !== null) return number(item.reward);
  return html`<span class="quiet">${item.state}</span>`;
}

const Fact = ({ label, children }) => html`<div><dt>${label}</dt><dd>${children}</dd></div>`;

function Drawer({ name, id, kind, color, events, onClose, onOpen }) {
  const { data: item, error, refresh } = useResource((signal) => ask("GET", banditPath(name, `/decisions/${encodeURIComponent(id)}`), { signal }), [id]);
  useEffect(() => {
    if (events && item && (item.state === "open" || item.state === "partial")) refresh();
  }, [events]);
  return html`
    <${Dialog} label="Decision ${id}" isDrawer onClose=${onClose}>
      <div class="drawer-head"><h2><small>Decision</small><span class="mono id">${id}</span></h2>
        <button class="icon" onClick=${onClose} aria-label="Close"><${Icon} of="close" /></button></div>
      ${error && error.status === 404 ? html`<p>No decision of this bandit has this id.</p>` : html`<${Failure} error=${error} />`}
      ${item ? html`
        <dl class="facts">
          <${Fact} label="Arm">${item.arm === null ? "stop" : html`<${Arm} of=${item.arm} color=${color(item.arm)} />`}<//>
          <${Fact} label="State"><${Status} of=${STATES[item.state]}>${item.state}<//><//>
          <${Fact} label="Propensity">${item.sticky ? "that of its session" : percent(item.propensity, 1)}<//>
          <${Fact} label="Decided">${fullTime(item.decided_at)}<//>
          ${item.closed_at ? html`<${Fact} label="Closed">${fullTime(item.closed_at)}<//>` : null}
          ${item.session ? html`<${Fact} label="Session"><${Name} of=${item.session} /><//>` : null}
          ${item.chosen_by ? html`<${Fact} label="Arm drawn by"><button class="link mono" onClick=${() => onOpen(item.chosen_by)}>${item.chosen_by}</button><//>` : null}
          ${item.attempt > 1 ? html`<${Fact} label="Attempt">${item.attempt} of ${item.episode}<//>` : null}
          <${Fact} label="Offset">${item.offset}<//>
        </dl>
        ${item.cooldown_ignored ? html`<p><${Status} of="warn">Every allowed arm was cooling down after errors.<//></p>` : null}
        <${Outcome} item=${item} />
        <${Terms} item=${item} kind=${kind} color=${color} />
        <${Document} label="Metadata" of=${item.metadata} />
        <${Document} label="Metadata of the outcome" of=${item.outcome_metadata} />
        <details><summary>As JSON</summary><pre tabindex="0" aria-label="The decision as JSON">${JSON.stringify(item, null, 2)}</pre></details>`
      : error ? null : html`<${Loading} />`}
    <//>`;
}

function Outcome({ item }) {
  const values = [["reward", item.reward], ["cost", item.cost], ...Object.entries(item.signals)].filter(([, value]) => value !== null);
  return html`
    <section><h3>Outcome</h3>
      ${item.error ? html`<p class="failure">${item.error}</p>` : null}
      ${values.length ? html`<dl class="facts">${values.map(([signal, value]) => html`<${Fact} label=${signal}>${number(value, 4)}<//>`)}</dl>`
        : html`<p class="quiet">${item.state === "open" ? "None yet." : "Nothing was learned."}</p>`}
      ${item.amendments.map((change) => html`
        <p class="quiet">Amended ${fullTime(change.at)}: ${Object.entries(change.after).map(([signal, value]) =>
          `${signal} ${number(change.before[signal])} → ${number(value)}`).join(", ")}</p>`)}
    </section>`;
}

const MOST = 24;

function Terms({ item, kind, color }) {
  const [isAll, setAll] = useState(false);
  const rows = termsOf(item, kind).sort((a, b) => b.isChosen - a.isChosen || b.weight - a.weight || (b.solid ?? 0) - (a.solid ?? 0));
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.terms)))].filter((term) => term !== "signals" && term !== "weight");
  const signals = [...new Set(rows.flatMap((row) => Object.keys(row.terms.signals || {})))];
  const isUnscored = rows.every((row) => row.solid === null);
  const drawn = (isAll ? rows : rows.slice(0, MOST)).map((row) => (isUnscored ? { ...row, solid: row.weight } : row));
  const scale = scaleOf(drawn);
  return html`
    <section><h3>Why</h3>
      <${Scroll} label="Scores">
        <table class="terms"><caption class="sr">Scores and weights per arm</caption>
          <thead><tr><th scope="col">Arm</th><th scope="col" class="bar-cell"><span class="sr">Bars</span></th>
            ${[...names, ...signals].map((term) => html`<th scope="col" class="number">${term}</th>`)}<th scope="col" class="number">weight</th></tr></thead>
          <tbody>${drawn.map((row) => html`
            <tr class=${row.isChosen ? "chosen" : ""}><th scope="row"><${Arm} of=${row.arm} color=${color(row.arm)} />${row.isChosen ? html`<span class="sr"> (chosen)</span>` : null}</th>
              <td class="bar-cell"><${Bar} row=${row} scale=${scale} color=${color(row.arm)} height=${10} /></td>
              ${names.map((term) => html`<td class="number">${number(row.terms[term])}</td>`)}
              ${signals.map((term) => html`<td class="number">${number((row.terms.signals || {})[term])}</td>`)}
              <td class="number">${percent(row.weight, 1)}</td></tr>`)}</tbody>
        </table>
      <//>
      ${rows.length > MOST && !isAll ? html`<button onClick=${() => setAll(true)}>All ${rows.length} arms</button>` : null}
      ${item.multipliers ? html`<p class="quiet">Budget: ${Object.entries(item.multipliers).map(([signal, value]) =>
        `${signal} weighed ${number(-value)} more, its running mean was ${number((item.running || {})[signal])}`).join("; ")}</p>` : null}
    </section>`;
}

const Document = ({ label, of }) => of && Object.keys(of).length
  ? html`<section><h3>${label}</h3><pre tabindex="0" aria-label=${label}>${JSON.stringify(of, null, 2)}</pre></section>` : null;
