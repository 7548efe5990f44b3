// What changes while it is looked at: resources that are asked again, and the event stream of a bandit.

import { useEffect, useRef, useState } from "./vendor/preact.js";
import { banditPath, send } from "./api.js";

/**
 * {data, error, refresh} of an asynchronous `load(signal)`. It is called at once, again whenever `inputs` change, every `everyMs`
 * while the tab is seen, and by `refresh`, at most once per `gapMs`. Old data stay until new ones are there.
 */
export function useResource(load, inputs, { everyMs = 0, gapMs = 1000 } = {}) {
  const [state, setState] = useState({ data: null, error: null });
  const latest = useRef(load);
  latest.current = load;
  const refresher = useRef(() => {});
  useEffect(() => {
    const ended = new AbortController();
    let isRunning = false;
    let isWanted = false;
    let timer = 0;
    async function run() {
      if (isRunning) {
        isWanted = true;
        return;
      }
      isRunning = true;
      isWanted = false;
      clearTimeout(timer);
      const began = performance.now();
      try {
        const data = await latest.current(ended.signal);
        if (!ended.signal.aborted) setState({ data, error: null });
      } catch (error) {
        if (!ended.signal.aborted) setState((before) => ({ ...before, error }));
      }
      isRunning = false;
      if (ended.signal.aborted) return;
      if (isWanted) timer = setTimeout(run, Math.max(0, gapMs - (performance.now() - began)));
      else if (everyMs) timer = setTimeout(poll, everyMs);
    }
    const poll = () => (document.hidden ? (timer = setTimeout(poll, everyMs)) : run());
    refresher.current = run;
    run();
    return () => {
      ended.abort();
      clearTimeout(timer);
    };
  }, inputs);
  return { data: state.data, error: state.error, refresh: useRef(() => refresher.current()).current };
}

const SILENCE_MS = 40_000;
const POLL_MS = 5_000;
const RETRY_STREAM_MS = 60_000;

/** Between two calls of `onChange`: a busy log has thousands of entries in a second. */
const GAP_MS = 400;

/**
 * Calls `onChange` when the log of a bandit has grown, and `onState` with "live", "polling" or "offline". Returns what ends it.
 * Read by `fetch`, since `EventSource` sends no key. Where no stream is free (503), `onChange` comes by the clock. A tab that is
 * not seen hears of it once it is.
 */
export function watch(bandit, { onChange, onState }) {
  const ended = new AbortController();
  let last = "";
  let timer = 0;
  let poller = 0;
  let failures = 0;
  let pending = 0;
  let isMissed = false;

  const change = () => {
    pending ||= setTimeout(() => {
      pending = 0;
      isMissed = document.hidden;
      if (!isMissed) onChange();
    }, GAP_MS);
  };
  const poll = (isOn) => {
    clearInterval(poller);
    poller = isOn ? setInterval(change, POLL_MS) : 0;
  };
  const see = () => isMissed && change();
  document.addEventListener("visibilitychange", see);

  async function connect() {
    let wait;
    try {
      const answer = await send("GET", banditPath(bandit, "/events"), {
        headers: { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) },
        signal: ended.signal,
      });
      if (!answer.ok) {
        last = ""; // what it named may be gone from the log
        onState("polling");
        poll(true);
        wait = RETRY_STREAM_MS;
      } else {
        poll(false);
        onState("live");
        if (failures) change(); // something may have been missed
        failures = 0;
        await readEvents(answer.body, (event) => {
          last = event.id || last;
          change();
        });
      }
    } catch {
      // the connection ended: by the service, by the network, or by `ended`
    }
    if (ended.signal.aborted) return;
    if (!wait) {
      failures += 1;
      if (failures > 1) onState("offline");
      poll(true);
      wait = Math.min(30_000, 500 * 2 ** failures);
    }
    timer = setTimeout(connect, wait);
  }

  connect();
  return () => {
    ended.abort();
    clearTimeout(timer);
    clearTimeout(pending);
    document.removeEventListener("visibilitychange", see);
    poll(false);
  };
}

/** Calls `onEvent({id, name, data})` for each event of a stream; returns where it ends, or is silent for too long. */
async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: "", name: "", data: "" };
  for (;;) {
    let watchdog;
    const silence = new Promise((resolve) => (watchdog = setTimeout(() => resolve({ done: true }), SILENCE_MS)));
    const { done, value } = await Promise.race([reader.read(), silence]);
    clearTimeout(watchdog);
    if (done) return void reader.cancel().catch(() => {});
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data) onEvent(event);
        event = { id: "", name: "", data: "" };
        continue;
      }
      const at = line.indexOf(":");
      const field = at < 0 ? line : line.slice(0, at);
      const text = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (field === "data") event.data += (event.data && "\n") + text;
      else if (field === "id") event.id = text;
      else if (field === "event") event.name = text;
    }
  }
}
