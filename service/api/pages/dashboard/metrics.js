// The text format of Prometheus, as far as the service writes it.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** name -> [{labels, value}] */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || "").matchAll(LABEL)) labels[name] = value.replace(/\\[n"\\]/g, (text) => ESCAPES[text]);
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return found;
}

export function total(samples, wanted = () => true) {
  return (samples || []).reduce((sum, sample) => (wanted(sample.labels) ? sum + sample.value : sum), 0);
}

/** [{route, method, count, errors, p50, p99}] of the requests since the process began, most frequent first; seconds. */
export function routes(metrics) {
  const found = new Map();
  const of = ({ route, method }) => {
    const key = `${method} ${route}`;
    if (!found.has(key)) found.set(key, { route: route || "(none)", method, count: 0, errors: 0, buckets: [] });
    return found.get(key);
  };
  for (const { labels, value } of metrics.get("nextarm_requests_total") || []) {
    const entry = of(labels);
    entry.count += value;
    if (labels.status >= "500") entry.errors += value;
  }
  for (const { labels, value } of metrics.get("nextarm_request_seconds_bucket") || []) {
    of(labels).buckets.push([labels.le === "+Inf" ? Infinity : Number(labels.le), value]);
  }
  return [...found.values()]
    .map((entry) => ({ ...entry, p50: quantile(entry.buckets, 0.5), p99: quantile(entry.buckets, 0.99) }))
    .sort((a, b) => b.count - a.count);
}

/** The quantile of a histogram of [upper limit, cumulative count], linear within a bucket; null where it is empty. */
export function quantile(buckets, share) {
  const sorted = [...buckets].sort((a, b) => a[0] - b[0]);
  const count = sorted.length ? sorted[sorted.length - 1][1] : 0;
  if (!count) return null;
  const rank = share * count;
  let lower = 0;
  let before = 0;
  for (const [upper, cumulative] of sorted) {
    if (cumulative >= rank) return upper === Infinity ? lower : lower + ((upper - lower) * (rank - before)) / (cumulative - before);
    [lower, before] = [upper, cumulative];
  }
  return lower;
}
