// The read model of a bandit: its series at the widths that the service keeps, and this day against a week ago.

import { ask, banditPath, query } from "./api.js";
import { meanOf, read, totals } from "./series.js";

const DAY = 86_400;

/** The last `seconds` of a bandit in at most 120 buckets; it begins where the bandit does. */
export async function loadSeries(name, seconds, signal) {
  const since = new Date(Date.now() - seconds * 1000).toISOString();
  return read(await ask("GET", banditPath(name, `/series${query({ since, buckets: 120 })}`), { signal }));
}

/** {week, recent}: the last eight days, and the shortest time that shows how shares change. */
export async function loadTrend(name, signal) {
  const week = await loadSeries(name, 8 * DAY, signal);
  const used = week.buckets.filter((bucket) => Object.keys(bucket.arms).length);
  if (used.length > 12) return { week, recent: week };
  return { week, recent: await loadSeries(name, used.length > 1 ? DAY : 3600, signal) };
}

/** {decisions, mean, change, cost, missing} of the last day: mean reward and how far it is from that of a week before (null: not known), cost
 * per outcome, share that expired. */
export function trendOf(week) {
  const end = week.buckets.length ? week.buckets[week.buckets.length - 1].at + week.width_s : 0;
  const between = (from, to) => totals(week.buckets.filter((bucket) => bucket.at >= end - from && bucket.at < end - to));
  const day = between(DAY, 0);
  const closed = day.outcomes + day.expired;
  const [now, before] = [meanOf(day.signals.reward), meanOf(between(8 * DAY, 7 * DAY).signals.reward)];
  const isKnown = now.error !== null && before.error !== null;
  return {
    decisions: day.decisions,
    mean: now.mean,
    change: isKnown ? { value: now.mean - before.mean, error: Math.hypot(now.error, before.error) } : null,
    cost: meanOf(day.signals.cost).mean,
    missing: closed ? day.expired / closed : null,
  };
}
