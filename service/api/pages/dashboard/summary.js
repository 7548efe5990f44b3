// The read model of bandits: series at the widths that the service keeps, several of them on one axis, and this day against a week ago.

import { ask, banditPath, inTurn, query } from "./api.js";
import { axisOf, meanOf, read, totals } from "./series.js";

const DAY = 86_400;

/** Buckets that the axis of a list has at least, where the service keeps such narrow ones. */
const FINE = 20;

/** The last `seconds` of a bandit in at most 120 buckets; it begins where the bandit does. */
export async function loadSeries(name, seconds, signal) {
  const since = new Date(Date.now() - seconds * 1000).toISOString();
  return read(await ask("GET", banditPath(name, `/series${query({ since, buckets: 120 })}`), { signal }));
}

/** The last eight days, which `trendOf` reads. */
export const loadWeek = (name, signal) => loadSeries(name, 8 * DAY, signal);

/**
 * {axis, series}: the one axis of all rows of a list, and name -> series on it; null where nothing happened. Those with buckets that
 * are wide on that axis are loaded again from its begin on. weeks: Map of name -> what `loadWeek` gave, or null.
 */
export async function loadOnOneAxis(weeks, signal) {
  const known = [...weeks].filter(([, week]) => week);
  const axis = axisOf(known.map(([, week]) => week));
  if (!axis) return null;
  const seconds = axis.end - axis.begin;
  const finer = async ([name, week]) => {
    try {
      return [name, week.width_s * FINE > seconds ? await loadSeries(name, seconds, signal) : week];
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return [name, week]; // wide buckets still lie where they belong
    }
  };
  const series = new Map(await inTurn(known, finer));
  return { axis: axisOf([...series.values()]) || axis, series };
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
