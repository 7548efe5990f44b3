// What if: shadows that learn beside the policy that decides, and evaluations of others on the log.

import { html, useEffect, useState } from "./vendor/preact.js";
import { ask, banditPath } from "./api.js";
import { colorsOf } from "./colors.js";
import { ago, count, fullTime, number, percent, plural, signed } from "./format.js";
import { useResource } from "./live.js";
import { Arm, Dialog, Empty, Failure, Loading, Name, Scroll, Status } from "./parts.js";

async function load(name, signal) {
  const get = (rest) => ask("GET", banditPath(name, rest), { signal });
  const [bandit, { shadows }, { evaluations }] = await Promise.all([get(""), get("/shadows"), get("/evaluations")]);
  return { bandit, shadows, evaluations };
}

export function WhatIf({ bandit: name, onRefused, onLive }) {
  const { data, error, refresh } = useResource((signal) => load(name, signal), [name], { everyMs: 5_000 });
  useEffect(() => {
    if (error && error.status === 401) onRefused(error);
    onLive(error ? "offline" : "polling");
  }, [error]);
  if (!data) return error ? html`<h1>What if</h1><${Failure} error=${error} />` : html`<${Loading} />`;
  return html`
    <div class="title"><h1>What if</h1><p class="quiet">What other policies make of the decisions of <${Name} of=${name} /></p></div>
    <${Failure} error=${error} />
    <${Shadows} name=${name} bandit=${data.bandit} shadows=${data.shadows} refresh=${refresh} />
    <${Evaluations} name=${name} bandit=${data.bandit} shadows=${data.shadows} evaluations=${data.evaluations} refresh=${refresh} />`;
}

const policyText = (policy) => {
  const { kind, arm } = policy;
  if (kind) return arm === undefined ? kind : `${kind}: ${arm}`;
  if (policy.shadow) return `shadow ${policy.shadow}`;
  return policy.frozen ? `frozen at ${policy.frozen}` : arm === undefined ? JSON.stringify(policy) : `always ${arm}`;
};

// -- shadows -----------------------------------------------------------------------------------------------------------------------

const STATES = { learning: "ok", behind: "info", failed: "alarm" };

function Shadows({ name, bandit, shadows, refresh }) {
  const [promoting, setPromoting] = useState(null);
  const [said, setSaid] = useState("");
  const color = colorsOf(bandit.arms);
  const done = (shadow) => {
    setPromoting(null);
    setSaid(`${shadow} decides now; the policy before it learns on as the shadow of that name.`);
    refresh();
  };
  return html`
    <section class="card" aria-labelledby="shadows">
      <div class="card-head"><h2 id="shadows">Shadows</h2><small>learn what <span class="mono">${bandit.policy.kind}</span> decides, and decide nothing</small></div>
      <p role="status" class=${said ? "said" : "sr"}>${said}</p>
      ${shadows.length === 0 ? html`
        <${Empty} title="No shadow"><p>A shadow shows what another policy would choose before it does.</p>
          <pre tabindex="0" aria-label="Command">curl -X PUT ${new URL(banditPath(name, "/shadows/candidate"), document.baseURI).href} \\
  -H 'content-type: application/json' -d '{"policy": {"kind": "thompson"}}'</pre><//>` : html`
        <div class="shadows">${shadows.map((shadow) => html`
          <article key=${shadow.name} aria-label="Shadow ${shadow.name}">
            <div class="shadow-head"><h3><${Name} of=${shadow.name} /></h3><span class="chip">${shadow.policy.kind}</span>
              <${Status} of=${STATES[shadow.state]}>${shadow.state}<//>
              <button class="push" onClick=${() => setPromoting(shadow)} disabled=${shadow.state !== "learning"}>Promote …</button></div>
            ${shadow.failure ? html`<p>${shadow.failure}</p>` : null}
            <dl class="facts">
              <div><dt>Agrees</dt><dd>${percent(shadow.agreement)}</dd></div>
              <div><dt>Decisions seen</dt><dd>${count(shadow.decisions)}${shadow.left_out ? html` <small>${count(shadow.left_out)} left out</small>` : null}</dd></div>
              <div><dt>Outcomes learned</dt><dd>${count(shadow.outcomes)}</dd></div>
              <div><dt>Since</dt><dd title=${fullTime(shadow.created_at)}>${ago(shadow.created_at)}</dd></div>
            </dl>
            <${Choices} bandit=${bandit} shadow=${shadow} color=${color} />
          </article>`)}</div>`}
      ${promoting ? html`<${Promotion} name=${name} bandit=${bandit} shadow=${promoting} onDone=${done} onClose=${() => setPromoting(null)} />` : null}
    </section>`;
}

const CHOICES = 8;

/** The shares of the arms: what was chosen of late, and what the shadow would have chosen. */
function Choices({ bandit, shadow, color }) {
  if (!shadow.would_choose) return null;
  const rows = bandit.arms
    .map((arm) => ({ name: arm.name, now: arm.share, then: shadow.would_choose[arm.name] || 0 }))
    .filter((row) => row.now > 0.0005 || row.then > 0.0005)
    .sort((a, b) => Math.max(b.now, b.then) - Math.max(a.now, a.then));
  return html`
    <table class="choices-table">
      <caption class="sr">Shares of the arms now, and as the shadow would choose</caption>
      <thead><tr><th scope="col">Arm</th><th scope="col" class="bar-cell"><span class="sr">Bars</span></th><th scope="col" class="number">Now</th>
        <th scope="col" class="number">Shadow</th></tr></thead>
      <tbody>${rows.slice(0, CHOICES).map((row) => html`
        <tr><th scope="row"><${Arm} of=${row.name} color=${color(row.name)} /></th>
          <td class="bar-cell"><svg class="pair ${color(row.name)}" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">
            <rect class="pale" y="1" width=${100 * row.now} height="6" /><rect y="9" width=${100 * row.then} height="6" /></svg></td>
          <td class="number">${percent(row.now)}</td><td class="number">${percent(row.then)}</td></tr>`)}</tbody>
    </table>
    ${rows.length > CHOICES ? html`<small>and ${plural(rows.length - CHOICES, "more arm")}</small>` : null}`;
}

function Promotion({ name, bandit, shadow, onDone, onClose }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const [id] = useState(() => `dashboard-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`); // a repeated click is the same promotion
  const promote = async () => {
    setBusy(true);
    try {
      await ask("POST", banditPath(name, `/shadows/${encodeURIComponent(shadow.name)}/promote`), { body: { id, shadow_offset: shadow.offset } });
      onDone(shadow.name);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`
    <${Dialog} label="Promote ${shadow.name}" onClose=${onClose}>
      <h2>Promote <${Name} of=${shadow.name} />?</h2>
      <p>From the next decision on <strong>${shadow.policy.kind}</strong> decides in <strong><${Name} of=${name} /></strong>.
        ${" "}<strong>${bandit.policy.kind}</strong> becomes the shadow of this name and learns on, so this can be undone in the same way.</p>
      <${Failure} error=${error} needs="admin" />
      <div class="actions"><button class="primary" onClick=${promote} disabled=${isBusy}>Promote</button><button onClick=${onClose}>Cancel</button></div>
    <//>`;
}

// -- evaluations -------------------------------------------------------------------------------------------------------------------

const VERDICTS = {
  answer: ["ok", "An answer"],
  wide: ["warn", "Too wide"],
  bounded: ["warn", "Bounded"],
  cannot_answer: ["alarm", "Cannot answer"],
};

function Evaluations({ name, bandit, shadows, evaluations, refresh }) {
  const [chosen, setChosen] = useState(null);
  const [isAsking, setAsking] = useState(false);
  const id = chosen || (evaluations.length ? evaluations[0].id : null);
  const summary = evaluations.find((item) => item.id === id);
  return html`
    <section class="card" aria-labelledby="evaluations">
      <div class="card-head"><h2 id="evaluations">Evaluations</h2><small>what others would have earned, from the log</small>
        <button class="push" onClick=${() => setAsking(true)}>Evaluate …</button></div>
      ${evaluations.length > 1 ? html`
        <p class="row"><label>Shown <select onChange=${(event) => setChosen(event.target.value)}>
          ${evaluations.map((item) => html`<option value=${item.id} selected=${item.id === id}>${item.id} · ${ago(item.created_at)} · ${item.state}</option>`)}</select></label></p>` : null}
      ${summary ? html`<${Evaluation} key=${id} name=${name} id=${id} state=${summary.state} progress=${summary.progress} />` : html`
        <${Empty} title="No evaluation"><p>Ask what another policy would have earned on the decisions so far. Nothing is changed by it.</p><//>`}
      ${isAsking ? html`<${Question} name=${name} bandit=${bandit} shadows=${shadows} onClose=${() => setAsking(false)}
        onDone=${(given) => { setAsking(false); setChosen(given); refresh(); }} />` : null}
    </section>`;
}

function Evaluation({ name, id, state, progress }) {
  const { data, error } = useResource(
    (signal) => ask("GET", banditPath(name, `/evaluations/${encodeURIComponent(id)}`), { signal }), [name, id, state]);
  if (!data) return error ? html`<${Failure} error=${error} />` : html`<${Loading} />`;
  if (state !== "done") {
    return state === "failed"
      ? html`<p class="failure"><${Status} of="alarm">${data.failure}<//></p>`
      : html`<p><label>${state === "queued" ? "Queued" : "Running"} <progress value=${progress} max="1"></progress></label> ${percent(progress)}</p>`;
  }
  if (!data.behaviour) return html`<p class="quiet">There is nothing to show.</p>`;
  const rows = [
    { ...data.behaviour, label: "as it was decided", isBehaviour: true },
    ...data.policies,
    ...(data.fixed_arms || []).map((row) => ({ ...row, label: policyText(row.policy) })).sort((a, b) => (b.value ?? -Infinity) - (a.value ?? -Infinity)).slice(0, 8),
  ];
  const left = Object.entries(data.left_out || {}).filter(([, n]) => n);
  return html`
    <p class="quiet">${plural(data.decisions, "decision")} with a reward, up to offset ${count(data.until)}${left.length
      ? `; left out: ${left.map(([why, n]) => `${count(n)} ${why.replaceAll("_", " ")}`).join(", ")}` : ""}. Intervals: ${percent(data.request.confidence || 0.95)}.</p>
    <${Forest} rows=${rows} base=${data.behaviour.value} />`;
}

/** Values with their intervals on one scale, beside what was earned. */
function Forest({ rows, base }) {
  const ends = rows.flatMap((row) => [row.value, ...(row.interval || [])]).filter((value) => typeof value === "number");
  const low = Math.min(...ends);
  const high = Math.max(...ends);
  const pad = (high - low || 1) * 0.06;
  const x = (value) => (100 * (value - low + pad)) / (high - low + 2 * pad);
  return html`
    <${Scroll} label="Policies">
      <table class="forest">
        <caption class="sr">Policies with their value, interval, support and verdict</caption>
        <thead><tr><th scope="col">Policy</th><th scope="col" class="number">Value</th><th scope="col" class="number wide">Against now</th>
          <th scope="col" class="plot">Interval</th><th scope="col" class="number wide">Support</th><th scope="col" class="number wide">Counts as</th><th scope="col">Verdict</th></tr></thead>
        <tbody>${rows.map((row) => {
          const [kind, text] = VERDICTS[row.verdict] || ["info", row.verdict];
          const [from, to] = row.interval || [];
          const isKnown = typeof from === "number" && typeof to === "number";
          return html`
            <tr class=${row.isBehaviour ? "base" : ""}>
              <th scope="row">${row.label || policyText(row.policy)}</th>
              <td class="number">${number(row.value)}</td>
              <td class="number wide">${row.isBehaviour || row.value === null ? "" : signed(row.value - base, 2)}</td>
              <td class="plot"><svg role="img" aria-label=${isKnown ? `${number(from)} to ${number(to)}` : "no interval"} width="100%" height="20">
                ${typeof base === "number" ? html`<line class="base-line" x1="${x(base)}%" x2="${x(base)}%" y1="0" y2="20" />` : null}
                ${isKnown ? html`<line class="whisker" x1="${x(from)}%" x2="${x(to)}%" y1="10" y2="10" />` : null}
                ${row.value === null ? null : html`<circle cx="${x(row.value)}%" cy="10" r="4" />`}</svg></td>
              <td class="number wide">${percent(row.support)}</td>
              <td class="number wide" title="Decisions of its own that would say as much">${count(row.effective_sample)}</td>
              <td>${row.isBehaviour ? "" : html`<span title=${row.reason || null}><${Status} of=${kind}>${text}<//></span>`}
                ${row.reason && !row.isBehaviour ? html`<small class="reason">${row.reason}</small>` : null}</td>
            </tr>`;
        })}</tbody>
      </table>
    <//>`;
}

function Question({ name, bandit, shadows, onClose, onDone }) {
  const { data, error: failed } = useResource((signal) => ask("GET", "v1/policies", { signal }), []);
  const [wanted, setWanted] = useState(() => new Set(shadows.map((shadow) => `shadow:${shadow.name}`)));
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const toggle = (item) => {
    const next = new Set(wanted);
    if (!next.delete(item)) next.add(item);
    setWanted(next);
  };
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    const policies = [...wanted].map((item) => (item.startsWith("shadow:") ? { shadow: item.slice(7) } : { kind: item }));
    try {
      const answer = await ask("POST", banditPath(name, "/evaluations"), { body: { policies } });
      onDone(answer.id);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  const kinds = (data ? data.policies : []).filter((policy) => policy.needs.includes("reward") && !policy.episodic
    && (!policy.needs.includes("features") || bandit.prompt)).map((policy) => policy.kind);
  const box = (item, text) => html`<label class="check"><input type="checkbox" checked=${wanted.has(item)} onChange=${() => toggle(item)} /> ${text}</label>`;
  return html`
    <${Dialog} label="Evaluate policies" onClose=${onClose}>
      <h2>What would others have earned?</h2>
      <p class="quiet">On the decisions of the log so far, beside the decisions of now. Every fixed arm is added by itself.</p>
      <form class="question" onSubmit=${submit}>
        <fieldset><legend>Policies</legend>
          ${shadows.map((shadow) => box(`shadow:${shadow.name}`, html`shadow <${Name} of=${shadow.name} />`))}
          ${kinds.filter((kind) => kind !== "one-arm").map((kind) => box(kind, kind))}</fieldset>
        <${Failure} error=${error || failed} needs="admin" />
        <div class="actions"><button class="primary" disabled=${isBusy || !wanted.size}>Evaluate</button><button type="button" onClick=${onClose}>Cancel</button></div>
      </form>
    <//>`;
}
