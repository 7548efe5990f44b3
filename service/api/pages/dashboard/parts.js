// What several pages are made of.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { credentials } from "./api.js";
import { signed, visible } from "./format.js";

/** A name that a client chose: as text, with what does not print made visible. */
export const Name = ({ of }) => html`<bdi class="name">${visible(of)}</bdi>`;

export const Arm = ({ of, color }) => html`<span class="arm ${color}"><i class="dot" aria-hidden="true"></i><${Name} of=${of} /></span>`;

const SIGNS = { ok: "✓", warn: "!", alarm: "✕", info: "i" };

/** A status in words, sign and color: none of them has to be seen alone. */
export const Status = ({ of, children }) => html`
  <span class="status ${of}"><i aria-hidden="true">${SIGNS[of] || "·"}</i>${children}</span>`;

/** One key figure. */
export const Figure = ({ label, value, children, hint }) => html`
  <div class="figure" title=${hint || null}>
    <dt>${label}</dt>
    <dd><strong>${value}</strong>${children ? html`<small>${children}</small>` : null}</dd>
  </div>`;

/** A change within a week, of which more is better; one within two standard errors is none. */
export function Change({ value, error }) {
  if (!(Math.abs(value) > 2 * error)) return html`<span class="change">as a week ago</span>`;
  return html`<span class="change ${value > 0 ? "better" : "worse"}"><span aria-hidden="true">${value > 0 ? "▲ " : "▼ "}</span>${signed(value, 2)} in a week</span>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><h2>${title}</h2>${children}</div>`;

export const Loading = () => html`<p class="loading" role="status">Loading …</p>`;

/** What to say of a refusal. needs: the role that the page would need. */
export function Failure({ error, needs = "" }) {
  if (!error) return null;
  const text =
    error.status === 403 && needs
      ? `This needs a key with the role ${needs}. ${error.message}`
      : error.message || String(error);
  return html`<p class="failure" role="alert"><${Status} of="alarm">${text}<//></p>`;
}

/** A table that scrolls sideways where it must; the keyboard reaches it then. */
export function Scroll({ label, children }) {
  return html`<div class="scroll" role="region" aria-label="${label}, table" tabindex="0">${children}</div>`;
}

/** A modal dialog: the browser keeps the focus in it, and gives it back. drawer: at the right edge. */
export function Dialog({ label, isDrawer = false, onClose, children }) {
  const element = useRef(null);
  useEffect(() => {
    const dialog = element.current;
    const before = document.activeElement;
    dialog.showModal();
    return () => {
      dialog.close();
      if (before && before.isConnected) before.focus();
    };
  }, []);
  const close = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`
    <dialog ref=${element} class=${isDrawer ? "drawer" : "dialog"} aria-label=${label} onCancel=${close}
      onClick=${(event) => event.target === element.current && onClose()}>
      <div class="dialog-body">${children}</div>
    </dialog>`;
}

/** Asks for a key, and with one of an operator for the tenant. */
export function KeyForm({ onDone, error }) {
  const [key, setKey] = useState(credentials.key);
  const [tenant, setTenant] = useState(credentials.tenant);
  const submit = (event) => {
    event.preventDefault();
    credentials.set({ key: key.trim(), tenant: tenant.trim() });
    onDone();
  };
  return html`
    <form class="key-form" onSubmit=${submit}>
      <${Failure} error=${error} />
      <label>API key
        <input type="password" name="key" autocomplete="off" spellcheck="false" value=${key} onInput=${(event) => setKey(event.target.value)} />
      </label>
      <label>Tenant <small>(optional: with an admin key that belongs to none)</small>
        <input name="tenant" autocomplete="off" spellcheck="false" value=${tenant} onInput=${(event) => setTenant(event.target.value)} />
      </label>
      <p class="quiet">Both stay in this tab and go to this server alone.</p>
      <div class="actions"><button class="primary">Use this key</button></div>
    </form>`;
}

/** The least width at which an area is seen, pixels. */
const SEEN = 2;

/**
 * Shares over time as a small stack of areas, on an axis that other rows share. columns: [[share per arm] or null per bucket],
 * times: where the buckets begin, and where the last one ends; axis: {begin, end}, all in seconds; colors: class per arm.
 */
export function Sparkline({ columns, times, axis, colors, label, width = 140, height = 28 }) {
  const place = (time) => ((time - axis.begin) * width) / (axis.end - axis.begin);
  const known = columns.flatMap((column, at) => (column ? [[place(times[at]), place(times[at + 1]), column]] : []));
  if (!known.length) return html`<span class="quiet">–</span>`;
  const [, end, newest] = known[known.length - 1];
  known.push([end, end, newest]);
  known[0][0] = Math.max(0, Math.min(known[0][0], end - SEEN));
  const layers = [];
  let below = known.map(() => 0);
  colors.forEach((color, arm) => {
    const top = known.map(([, , column], k) => below[k] + column[arm]);
    const y = (value) => (height * (1 - value)).toFixed(1);
    const up = known.map(([x], k) => `${x.toFixed(1)},${y(top[k])}`);
    const back = known.map(([x], k) => `${x.toFixed(1)},${y(below[k])}`).reverse();
    layers.push(html`<polygon class=${color} points=${[...up, ...back].join(" ")} />`);
    below = top;
  });
  return html`<svg class="sparkline" viewBox="0 0 ${width} ${height}" width=${width} height=${height} role="img" aria-label=${label}
    preserveAspectRatio="none">${layers}</svg>`;
}
