"""wrk, by a Lua script that is written for each plan; and what it counted, one line of JSON at its end.

wrk adds what stalled requests would have seen to its quantiles, had they been sent in time (its own correction).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.performance.load_testing.plans import Plan

ROOT = Path(__file__).resolve().parents[3]
MARK = "bench.performance.load:"
STALL_S = 30
"""An answer that takes longer is a timeout."""

REPORT = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('MARK {"requests": %d, "seconds": %.6f, "p50": %.1f, "p95": %.1f, "p99": %.1f, "max": %.1f, ',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max))
  io.write(string.format('"refused": %d, "broken": %d}\\n', e.status, e.connect + e.read + e.write + e.timeout))
end
""".replace("MARK", MARK)

JSON = '{["Content-Type"] = "application/json"}'
SCRIPTS = {
    "bodies": """
local requests, at = {}, 0
function init(args)
  for body in io.lines("%(file)s") do
    if body == "" then requests[#requests + 1] = wrk.format("%(method)s", "%(path)s")
    else requests[#requests + 1] = wrk.format("%(method)s", "%(path)s", %(json)s, body) end
  end
end
function request()
  at = at %% #requests + 1
  return requests[at]
end
""",
    "rounds": """
local asks, ids, at, first, last = {}, {}, 0, 1, 0
local post = "/outcome HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\nContent-Length: 16\\r\\n\\r\\n"
function init(args)
  for body in io.lines("%(file)s") do asks[#asks + 1] = wrk.format("POST", "%(path)s", %(json)s, body) end
end
function request()
  at = at + 1
  if first > last then return asks[at %% #asks + 1] end
  local id = ids[first]
  ids[first] = nil
  first = first + 1
  return "PUT %(path)s/" .. id .. post .. string.format('{"reward":0.%%03d}', (at * 379) %% 1000)
end
function response(status, headers, body)
  if status == 201 then
    last = last + 1
    ids[last] = string.match(body, '"id":"([^"]+)"')
  end
end
""",
    "outcomes": """
local n, post = 0, "\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\nContent-Length: 16\\r\\n\\r\\n"
function request()
  n = n + 1
  if n > %(supply)d then
    n = %(supply)d
    wrk.thread:stop()
  end
  return string.format('PUT %(path)s/%(prefix)s%%d/outcome HTTP/1.1' .. post .. '{"reward":0.%%03d}', n, (n * 379) %% 1000)
end
""",
    "outcome batches": """
local n = 0
function request()
  local items = {}
  for i = 1, %(size)d do
    n = n + 1
    items[i] = string.format('{"decision":"%(prefix)s%%d","reward":0.%%03d}', n, (n * 379) %% 1000)
  end
  if n + %(size)d > %(supply)d then wrk.thread:stop() end
  return wrk.format("POST", "%(path)s", %(json)s, '{"outcomes":[' .. table.concat(items, ",") .. ']}')
end
""",
    "texts": """
local n = 0
function request()
  n = n + 1
  local body = string.format('{"prompt":"Question %(prefix)s%%d: which of these models should answer it?"}', n %% %(different)d)
  return wrk.format("POST", "%(path)s", %(json)s, body)
end
""",
}


class Counted(NamedTuple):
    """What a driver counted. p50 ... longest: ms.  refused: answers of status 400 and above.  broken: connections, timeouts."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float
    longest: float
    refused: int
    broken: int


class NoAnswer(Exception):
    """A driver ended without its line."""


def available() -> bool:
    """Whether wrk is on this machine."""
    return shutil.which("wrk") is not None


def parsed(text: str) -> Counted:
    """The line that a driver prints at its end; `NoAnswer` where there is none."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    if not lines:
        raise NoAnswer(f"the driver said: {text[-500:]}")
    told: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    p50, p95, p99, longest = (told[name] / 1e3 for name in ("p50", "p95", "p99", "max"))
    return Counted(told["requests"], told["seconds"], p50, p95, p99, longest, told["refused"], told["broken"])


def lua(plan: Plan) -> str:
    """The script of a plan."""
    return SCRIPTS[plan.kind] % {**asdict(plan), "json": JSON} + REPORT


def begin(url: str, plan: Plan, *, folder: Path, connections: int, seconds: float) -> subprocess.Popen[str]:
    """Wrk in a process of its own: one thread, so many connections, whole seconds. folder: for its script."""
    if not available():
        raise SystemExit("there is no wrk on this machine (apt-get install wrk)")
    script = folder / f"{len(list(folder.iterdir()))}.lua"
    script.write_text(lua(plan))
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", f"{STALL_S}s", "-s", str(script), url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str], *, patience_s: float = 120.0) -> Counted:
    """What it counted."""
    try:
        return parsed(process.communicate(timeout=patience_s)[0])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
