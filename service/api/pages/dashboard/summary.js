// The read model of a bandit: its series at the widths that the service keeps, and this day against a week ago.

import { ask, banditPath, query } from "./api.js";
import { complete, meanOf, totals } from "./series.js";

const DAY = 86_400;

/** The last `seconds` of a bandit in at most 120 buckets, but nothing before `created`; null where the service keeps none. */
export async function loadSeries(name, seconds, signal, created = 0) {
  const since = new Date(Math.max(Date.now() - seconds * 1000, Date.parse(created) || 0)).toISOString();
  try {
    return complete(await ask("GET", banditPath(name, `/series${query({ since, buckets: 120 })}`), { signal }));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** {week, recent}: the last eight days, and the shortest time that shows how shares change; null as above. */
export async function loadTrend(name, signal) {
  const week = await loadSeries(name, 8 * DAY, signal);
  if (!week) return null;
  const used = week.buckets.filter((bucket) => Object.keys(bucket.arms).length);
  if (used.length > 12) return { week, recent: week };
  return { week, recent: await loadSeries(name, used.length > 1 ? DAY : 3600, signal) };
}

/** {now, before, cost, missing} of the last day: mean reward now and of the same day a week before, cost per outcome, share expired. */
export function trendOf(week) {
  const end = week.buckets.length ? week.buckets[week.buckets.length - 1].at + week.width_s : 0;
  const between = (from, to) => totals(week.buckets.filter((bucket) => bucket.at >= end - from && bucket.at < end - to));
  const day = between(DAY, 0);
  const closed = day.outcomes + day.expired;
  return {
    decisions: day.decisions,
    now: meanOf(day.signals.reward),
    before: meanOf(between(8 * DAY, 7 * DAY).signals.reward),
    cost: meanOf(day.signals.cost).mean,
    missing: closed ? day.expired / closed : null,
  };
}
