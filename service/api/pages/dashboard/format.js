// Numbers and times as text. What is not known is an en dash.

export const NOTHING = "–";
const isKnown = (value) => typeof value === "number" && Number.isFinite(value);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** How many: 1,234; from 100,000 on 123K. */
export function count(value) {
  if (!isKnown(value)) return NOTHING;
  return Math.abs(value) < 100_000 ? whole.format(value) : compact.format(value);
}

/** With three digits that count: 0.0123, 4.56, 1,234. */
export function number(value, digits = 3) {
  if (!isKnown(value)) return NOTHING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-6) return value.toExponential(digits - 1).replace("-", "−");
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return size >= 1000 ? whole.format(value).replace("-", "−") : value.toFixed(Math.min(decimals, 8)).replace("-", "−");
}

/** The same with a sign. */
export function signed(value, digits = 3) {
  return isKnown(value) && value > 0 ? `+${number(value, digits)}` : number(value, digits);
}

/** Decimals that an error deserves: two digits of it. */
export function decimalsOf(error) {
  return isKnown(error) && error > 0 ? Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(error)))) : 0;
}

/** 0.713 ± 0.012 */
export function withError(value, error, decimals = decimalsOf(error)) {
  if (!isKnown(value)) return NOTHING;
  if (!isKnown(error) || error <= 1e-9 * Math.abs(value)) return number(value);  // of equal values sums leave a rest
  return `${value.toFixed(decimals).replace("-", "−")} ± ${error.toFixed(decimals)}`;
}

export function percent(share, decimals = 0) {
  if (!isKnown(share)) return NOTHING;
  const value = 100 * share;
  if (value > 0 && value < 1 && decimals === 0) return value < 0.1 ? "<0.1%" : `${value.toFixed(1)}%`;
  return `${value.toFixed(decimals)}%`;
}

export function duration(seconds) {
  if (!isKnown(seconds)) return NOTHING;
  const size = Math.abs(seconds);
  if (size < 1e-3) return `${number(seconds * 1e6, 2)} µs`;
  if (size < 1) return `${number(seconds * 1e3, 2)} ms`;
  if (size < 90) return `${number(seconds, 2)} s`;
  if (size < 5400) return `${Math.round(seconds / 60)} min`;
  if (size < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

export function bytes(value) {
  if (!isKnown(value)) return NOTHING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${number(value)} ${units[at]}`;
}

/** "12 s ago" */
export function ago(text, now = Date.now()) {
  if (!text) return NOTHING;
  const seconds = Math.max(0, (now - Date.parse(text)) / 1000);
  return seconds < 2 ? "just now" : `${duration(Math.round(seconds))} ago`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** The clock today, the date before. */
export function time(text, now = new Date()) {
  if (!text) return NOTHING;
  const at = new Date(text);
  return at.toDateString() === now.toDateString() ? clock.format(at) : `${day.format(at)} ${clock.format(at).slice(0, 5)}`;
}

export function fullTime(text) {
  return text ? full.format(new Date(text)) : NOTHING;
}

/** "1 arm", "2 arms" */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** A name as it stands, with characters that do not print made visible. */
export function visible(name) {
  return String(name).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "�");
}
