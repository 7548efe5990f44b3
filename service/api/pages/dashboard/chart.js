// Charts over time, drawn by uPlot. Legends are HTML: they name, and tell the values under the cursor.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { cssColor, onThemeChange } from "./colors.js";
import { number, percent } from "./format.js";
import { Arm } from "./parts.js";
import { OTHER } from "./series.js";
import uPlot from "./vendor/uplot.js";

const TIMES = [
  // tick, as it is, at the first of a year, month, day, hour, minute, second; the last number says how they go together
  [31_536_000, "{YYYY}", null, null, null, null, null, null, 1],
  [2_419_200, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86_400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
  [1, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
];
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif";

function axis(more) {
  return {
    font: FONT,
    stroke: () => cssColor("--quiet"),
    grid: { stroke: () => cssColor("--line"), width: 1 },
    ticks: { show: false },
    ...more,
  };
}

/** data: [times, values ...]; lines: the series of uPlot, without that of the times; range: of the values, as uPlot takes it. */
function Plot({ data, lines, bands = [], range, format, label, onCursor, height = 220 }) {
  const place = useRef(null);
  const plot = useRef(null);
  useEffect(() => {
    const options = {
      width: place.current.clientWidth,
      height,
      padding: [10, 26, 0, 0], // at the right half of a time, which is centered at its tick
      cursor: { sync: { key: "nextarm" }, drag: { x: false, y: false }, points: { show: false }, y: false },
      legend: { show: false },
      scales: { y: { range } },
      axes: [axis({ values: TIMES, space: 70 }), axis({ values: (_, ticks) => ticks.map(format), size: 52, space: 36 })],
      series: [{}, ...lines],
      bands,
      hooks: { setCursor: [(chart) => onCursor(chart.cursor.idx ?? null)] },
    };
    const chart = new uPlot(options, data, place.current);
    plot.current = chart;
    const resize = new ResizeObserver(() => chart.setSize({ width: place.current.clientWidth, height }));
    resize.observe(place.current);
    const endTheme = onThemeChange(() => chart.redraw(false, true));
    return () => {
      resize.disconnect();
      endTheme();
      chart.destroy();
    };
  }, []);
  useEffect(() => plot.current.setData(data), [data]);
  return html`<div class="plot" ref=${place} role="img" aria-label=${label}></div>`;
}

const nameOf = (arm) => (arm === OTHER ? "all others" : arm);

function last(values) {
  for (let at = values.length - 1; at >= 0; at--) if (values[at] !== null && values[at] !== undefined) return values[at];
  return null;
}

/** Shares of the decisions as a stack. columns: [share per arm] or null per time. */
export function SharesChart({ times, arms, columns, color }) {
  const [cursor, setCursor] = useState(null);
  const tops = arms.map((_, arm) => columns.map((column) => column && column.slice(0, arm + 1).reduce((sum, share) => sum + share, 0)));
  const data = [times, ...tops.reverse()];
  const lines = [...arms].reverse().map((arm) => ({
    stroke: () => cssColor("--card"),
    fill: () => cssColor(`--${color(arm)}`),
    width: 1,
    points: { show: false },
  }));
  const newest = last(columns) || arms.map(() => null);
  const shown = (cursor !== null && columns[cursor]) || newest;
  const label = `Shares of the decisions over time. Newest: ${arms.map((arm, at) => `${nameOf(arm)} ${percent(newest[at])}`).join(", ")}`;
  return html`
    <ul class="legend">${arms.map((arm, at) => html`<li><${Arm} of=${nameOf(arm)} color=${color(arm)} /><b>${percent(shown[at])}</b></li>`)}</ul>
    <${Plot} key=${arms.join("\u0000")} data=${data} lines=${lines} range=${() => [0, 1]} format=${(value) => percent(value)} label=${label} onCursor=${setCursor} />`;
}

/** A smoothed curve with its band, or one curve per arm without. curves: [{arm (null: of all), middle, low, high}]. */
export function CurveChart({ times, curves, color, label: what }) {
  const [cursor, setCursor] = useState(null);
  const isOne = curves.length === 1 && curves[0].arm === null;
  const none = { stroke: "transparent", width: 0, points: { show: false } };
  const line = (curve) => ({
    stroke: () => cssColor(curve.arm === null ? "--accent" : `--${color(curve.arm)}`),
    width: 2,
    points: { show: false },
    spanGaps: curve.low === undefined,
  });
  const data = isOne ? [times, curves[0].low, curves[0].high, curves[0].middle] : [times, ...curves.map((curve) => curve.middle)];
  const lines = isOne ? [none, none, line(curves[0])] : curves.map(line);
  const bands = isOne ? [{ series: [2, 1], fill: () => cssColor("--band") }] : [];
  const range = (_, low, high) => {
    if (low === null || high === null) return [0, 1];
    const pad = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - pad, high + pad];
  };
  const at = (values) => (cursor !== null && values[cursor] !== null && values[cursor] !== undefined ? values[cursor] : last(values));
  const text = (curve) => (isOne ? `${number(at(curve.middle))} (${number(at(curve.low))} to ${number(at(curve.high))})` : number(at(curve.middle)));
  const label = `${what} over time${curves[0] && curves[0].low ? ", smoothed" : ""}. Newest: ${curves.map((curve) => `${curve.arm === null ? "" : `${nameOf(curve.arm)} `}${number(last(curve.middle))}`).join(", ")}`;
  return html`
    <ul class="legend">${curves.map((curve) => html`
      <li>${curve.arm === null ? html`<span class="arm total"><i class="dot" aria-hidden="true"></i>${what}, with 95 % band</span>` : html`<${Arm} of=${nameOf(curve.arm)} color=${color(curve.arm)} />`}
        <b>${text(curve)}</b></li>`)}</ul>
    <${Plot} key=${curves.map((curve) => curve.arm).join("\u0000")} data=${data} lines=${lines} bands=${bands} range=${range} format=${(value) => number(value)} label=${label} onCursor=${setCursor} />`;
}
