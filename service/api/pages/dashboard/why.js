// Why an arm was chosen: the terms of the policy as bars, the chosen arm opaque.

import { html } from "./vendor/preact.js";
import { number, percent } from "./format.js";

/** Policies that choose the lowest score: their bonus is taken off. */
const LOWEST = new Set(["fd-ucb"]);

/**
 * [{arm, isChosen, solid, pale, weight, terms}] of a decision, in its order of arms. Solid is the estimate (of mixtures the weight),
 * pale what uncertainty adds: [from, to], or null.
 */
export function termsOf(decision, kind) {
  return Object.entries(decision.weights).map(([arm, weight]) => {
    const terms = decision.scores[arm] || {};
    const estimate = terms.estimate ?? null;
    const bonus = terms.bonus ?? terms.deviation ?? null;
    const row = { arm, weight, terms, isChosen: arm === decision.arm };
    if (terms.weight !== undefined) return { ...row, solid: terms.weight ?? weight, pale: null };
    if (estimate === null) return { ...row, solid: null, pale: null };
    if (bonus === null) return { ...row, solid: estimate, pale: null };
    return LOWEST.has(kind) ? { ...row, solid: estimate - bonus, pale: [estimate - bonus, estimate] } : { ...row, solid: estimate, pale: [estimate, estimate + bonus] };
  });
}

/** The chosen arm and those of the highest weight and score, in the order of arms. */
export function mainTerms(rows, most) {
  if (rows.length <= most) return rows;
  const value = (row) => row.weight * 1e6 + (row.isChosen ? 1e9 : 0) + (row.pale ? row.pale[1] : row.solid ?? -1e3);
  const kept = new Set([...rows].sort((a, b) => value(b) - value(a)).slice(0, most));
  return rows.filter((row) => kept.has(row));
}

/** From the lowest to the highest end of all bars, 0 included. */
export function scaleOf(rows) {
  const ends = rows.flatMap((row) => [row.solid ?? 0, ...(row.pale || [])]);
  const low = Math.min(0, ...ends);
  const high = Math.max(0, ...ends);
  return { low, high: high > low ? high : low + 1 };
}

export function Bar({ row, scale, color, height = 8 }) {
  const x = (value) => (100 * (value - scale.low)) / (scale.high - scale.low);
  const rect = (from, to, kind) => html`<rect class=${kind} x=${Math.min(x(from), x(to))} width=${Math.max(Math.abs(x(to) - x(from)), 0.4)} height=${height} />`;
  return html`
    <svg class="bar ${color} ${row.isChosen ? "chosen" : ""}" viewBox="0 0 100 ${height}" preserveAspectRatio="none" aria-hidden="true">
      ${row.solid === null ? null : rect(0, row.solid, "solid")}${row.pale ? rect(...row.pale, "pale") : null}</svg>`;
}

const sentence = (row) => {
  const { estimate, bonus, deviation, gradient } = row.terms;
  const parts = [estimate !== undefined && `estimate ${number(estimate)}`, bonus !== undefined && `bonus ${number(bonus)}`,
    deviation !== undefined && `deviation ${number(deviation)}`, gradient !== undefined && `gradient ${number(gradient)}`, `weight ${percent(row.weight)}`];
  return `${row.isChosen ? "chosen: " : ""}${row.arm}: ${parts.filter(Boolean).join(", ")}`;
};

/** The bars of one decision in a row of a table. */
export function Why({ decision, kind, color }) {
  const rows = mainTerms(termsOf(decision, kind), 4);
  const isUnscored = rows.every((row) => row.solid === null);
  const drawn = isUnscored ? rows.map((row) => ({ ...row, solid: row.weight })) : rows;
  const scale = scaleOf(drawn);
  return html`<div class="why" role="img" aria-label=${rows.map(sentence).join("; ")}>
    ${drawn.map((row) => html`<${Bar} row=${row} scale=${scale} color=${color(row.arm)} />`)}</div>`;
}
