// Requests to the service, with the key and the tenant of this tab.

const KEY = "nextarm.key";
const TENANT = "nextarm.tenant";

export const credentials = {
  get key() {
    return sessionStorage.getItem(KEY) || "";
  },
  get tenant() {
    return sessionStorage.getItem(TENANT) || "";
  },
  /** Kept until the tab is closed; empty ones are forgotten. */
  set({ key, tenant }) {
    for (const [name, value] of [[KEY, key], [TENANT, tenant]]) {
      if (value) sessionStorage.setItem(name, value);
      else sessionStorage.removeItem(name);
    }
  },
};

/** A refusal of the service (its problem document), or no answer at all: then `status` is 0. */
export class Refusal extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** The `fetch` of a path below this page, with credentials. */
export function send(method, path, { body, headers, signal } = {}) {
  const sent = { accept: "*/*", ...headers };
  if (credentials.key) sent.authorization = `Bearer ${credentials.key}`;
  if (credentials.tenant) sent["x-nextarm-tenant"] = credentials.tenant;
  if (body !== undefined) sent["content-type"] = "application/json";
  const url = new URL(path, document.baseURI);
  return fetch(url, { method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
}

/** The JSON of an answer. accepted: statuses beside 2xx that are answers, too. Raises `Refusal`. */
export async function ask(method, path, { body, signal, accepted = [], as = "json" } = {}) {
  let answer;
  try {
    answer = await send(method, path, { body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "unreachable", "The service does not answer.");
  }
  if (answer.ok || accepted.includes(answer.status)) return answer.status === 204 ? null : answer[as]();
  throw await refusal(answer);
}

export async function refusal(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // a proxy answered, not the service
  }
  return new Refusal(answer.status, problem.code || "", problem.detail || `HTTP ${answer.status}`);
}

/** The path of a bandit; names are checked by the service, and encoded all the same. */
export function banditPath(name, rest = "") {
  return `v1/bandits/${encodeURIComponent(name)}${rest}`;
}

/** A query string without what is empty. */
export function query(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The results of `work(item)` in order, at most `width` at a time. */
export async function inTurn(items, work, width = 4) {
  const results = new Array(items.length);
  let next = 0;
  async function run() {
    while (next < items.length) {
      const at = next++;
      results[at] = await work(items[at], at);
    }
  }
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, run));
  return results;
}
