// From the buckets of a bandit's series to what is drawn: sums over arms, smoothed means with their error, shares.

const Z = 1.96; // half of a 95 % interval, in standard errors

export const empty = () => ({ decisions: 0, outcomes: 0, expired: 0, signals: {} });

/** Adds `weight` times the sums of `part` to `total`. */
export function add(total, part, weight = 1) {
  if (!part) return total;
  for (const name of ["decisions", "outcomes", "expired"]) total[name] += weight * (part[name] || 0);
  for (const [name, sums] of Object.entries(part.signals || {})) {
    const into = (total.signals[name] ||= { sum: 0, square_sum: 0, count: 0 });
    for (const field of ["sum", "square_sum", "count"]) into[field] += weight * (sums[field] || 0);
  }
  return total;
}

/** Sums over buckets and arms. arm: of this one alone. */
export function totals(buckets, arm = null) {
  const total = empty();
  for (const bucket of buckets) {
    if (arm !== null) add(total, bucket.arms[arm]);
    else for (const part of Object.values(bucket.arms)) add(total, part);
  }
  return total;
}

/** {mean, error, count} of a signal; the error is that of the mean. Nulls where too little is known. */
export function meanOf(sums) {
  if (!sums || sums.count <= 0) return { mean: null, error: null, count: 0 };
  const mean = sums.sum / sums.count;
  if (sums.count < 2) return { mean, error: null, count: sums.count };
  const variance = Math.max(0, sums.square_sum / sums.count - mean * mean) * (sums.count / (sums.count - 1));
  return { mean, error: Math.sqrt(variance / sums.count), count: sums.count };
}

/** The width of the smoothing, in buckets: wide enough that some 30 outcomes stand behind a point, at most a sixth of the chart. */
export function bandwidth(counts) {
  const used = counts.filter((count) => count > 0);
  const mean = used.length ? used.reduce((sum, count) => sum + count, 0) / used.length : 1;
  return Math.min(Math.max(1.2, 30 / (2.5 * mean)), counts.length / 6);
}

/** Weights of a Gaussian at the distances 0, 1, ... buckets. */
function kernel(width) {
  return Array.from({ length: Math.ceil(3 * width) + 1 }, (_, distance) => Math.exp(-0.5 * (distance / width) ** 2));
}

/**
 * A signal over time: {middle, low, high}, each a number or null per bucket. Every point is the mean of the outcomes around it, by a
 * Gaussian, with a 95 % band; null where none are near. sums: {sum, square_sum, count} or null per bucket.
 */
export function smooth(sums, width) {
  const weights = kernel(width);
  const result = { middle: [], low: [], high: [] };
  for (let at = 0; at < sums.length; at++) {
    let n = 0;
    let n2 = 0;
    let sum = 0;
    let squares = 0;
    for (let k = Math.max(0, at - weights.length + 1); k < Math.min(sums.length, at + weights.length); k++) {
      const bucket = sums[k];
      if (!bucket || !bucket.count) continue;
      const weight = weights[Math.abs(k - at)];
      n += weight * bucket.count;
      n2 += weight * weight * bucket.count;
      sum += weight * bucket.sum;
      squares += weight * bucket.square_sum;
    }
    const isNear = n >= 1;
    const mean = sum / n;
    const effective = (n * n) / n2;
    const error = isNear && effective > 1.5 ? Math.sqrt((Math.max(0, squares / n - mean * mean) / (effective - 1))) : 0;
    result.middle.push(isNear ? mean : null);
    result.low.push(isNear ? mean - Z * error : null);
    result.high.push(isNear ? mean + Z * error : null);
  }
  return result;
}

/**
 * What is maximized, over time: the weighted sum of smoothed signals. Its band adds theirs as if they went up and down together, so
 * it is never too narrow.
 */
export function smoothObjective(objective, buckets, width) {
  const parts = Object.entries(objective).map(([signal, weight]) => [weight, smooth(signalOf(buckets, signal), width)]);
  const middle = [];
  const low = [];
  const high = [];
  for (let at = 0; at < buckets.length; at++) {
    const known = parts.filter(([, part]) => part.middle[at] !== null);
    const mean = known.reduce((sum, [weight, part]) => sum + weight * part.middle[at], 0);
    const half = known.reduce((sum, [weight, part]) => sum + Math.abs(weight) * (part.high[at] - part.middle[at]), 0);
    middle.push(known.length ? mean : null);
    low.push(known.length ? mean - half : null);
    high.push(known.length ? mean + half : null);
  }
  return { middle, low, high };
}

/** The sums of a signal per bucket, over all arms or of one. */
export function signalOf(buckets, signal, arm = null) {
  return buckets.map((bucket) => totals([bucket], arm).signals[signal] || null);
}

/** Smoothed shares of the decisions: per bucket [share per arm of `arms`] or null where none are near. */
export function shares(buckets, arms, width) {
  const weights = kernel(width);
  const counts = buckets.map((bucket) => arms.map((arm) => (bucket.arms[arm] ? bucket.arms[arm].decisions || 0 : 0)));
  return counts.map((_, at) => {
    const sums = arms.map(() => 0);
    for (let k = Math.max(0, at - weights.length + 1); k < Math.min(counts.length, at + weights.length); k++) {
      const weight = weights[Math.abs(k - at)];
      counts[k].forEach((count, arm) => (sums[arm] += weight * count));
    }
    const total = sums.reduce((sum, value) => sum + value, 0);
    return total >= 0.5 ? sums.map((value) => value / total) : null;
  });
}

/** The key of the arms that are counted together. */
export const OTHER = "\u0000other";

/** A series as the service answers it, with times as seconds, and what it counts together under `OTHER`. */
export function read(series) {
  const buckets = series.buckets.map(({ at, arms, other }) => ({
    at: Date.parse(at) / 1000,
    arms: other ? { ...arms, [OTHER]: other } : arms,
  }));
  return { width_s: series.width_s, arms: series.arms, buckets };
}

/** {begin, end} in seconds: from the first bucket in which anything happened in one of several series to the last end; null where nothing did. */
export function axisOf(several) {
  const begins = several.flatMap(({ buckets }) => buckets.filter((bucket) => Object.keys(bucket.arms).length).slice(0, 1).map((bucket) => bucket.at));
  if (!begins.length) return null;
  const ends = several.filter(({ buckets }) => buckets.length).map(({ buckets, width_s }) => buckets[buckets.length - 1].at + width_s);
  return { begin: Math.min(...begins), end: Math.max(...ends) };
}

/**
 * The arms that get a layer of their own, in their order, and the buckets with all others as one, under `OTHER`: outcomes of arms
 * without a decision here, too.
 */
export function foldArms(series, color) {
  const known = [...new Set(series.buckets.flatMap((bucket) => Object.keys(bucket.arms)))];
  const decided = new Set(known.filter((arm) => totals(series.buckets, arm).decisions));
  const own = series.arms.filter((arm) => decided.has(arm) && color(arm) !== "arm-other");
  const rest = known.filter((arm) => !own.includes(arm));
  if (!rest.some((arm) => decided.has(arm))) return { arms: own, buckets: series.buckets };
  const buckets = series.buckets.map((bucket) => {
    const arms = Object.fromEntries(own.filter((arm) => bucket.arms[arm]).map((arm) => [arm, bucket.arms[arm]]));
    return { at: bucket.at, arms: { ...arms, [OTHER]: rest.reduce((total, arm) => add(total, bucket.arms[arm]), empty()) } };
  });
  return { arms: [...own, OTHER], buckets };
}

/** A score of the last decision of each bucket, of one arm; null where it is not known. */
export function scoreOf(buckets, score, arm) {
  return buckets.map((bucket) => (bucket.arms[arm] && bucket.arms[arm].scores ? bucket.arms[arm].scores[score] ?? null : null));
}
