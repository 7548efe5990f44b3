"""Prompts in a closed loop by wrk, each of one request or of two: a decision, then its outcome on the same connection.

    connection   POST decision --> id --> PUT outcome --> POST decision ...      the time of a prompt is that of both

wrk's scripts do not know which connection an answer came from, so every connection has a thread, hence a script, of its own.
"""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.performance.load_testing.wrk import JSON, MARK, ROOT, STALL_S

SCRIPT = """
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment; int clock_gettime(int, moment *);")
local moment, threads, asks, at, began, id = ffi.new("moment"), {}, {}, 0, 0, nil
taken = {}  -- us per prompt; global, so that done() can fetch it from each thread

local function now()
  ffi.C.clock_gettime(1, moment)  -- CLOCK_MONOTONIC
  return tonumber(moment.s) * 1e6 + tonumber(moment.ns) / 1e3
end

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  for body in io.lines("%(file)s") do asks[#asks + 1] = wrk.format("POST", "%(path)s", %(json)s, body) end
end

function request()
  if id then
    local body = string.format('{"reward":0.%%03d}', #taken * 379 %% 1000)
    return wrk.format("PUT", "%(path)s/" .. id .. "/outcome", %(json)s, body)
  end
  at, began = at %% #asks + 1, now()
  return asks[at]
end

function response(status, headers, body)
  local refused, second = status >= 400, id ~= nil
  id = nil
  if refused then return end
  if %(pairs)s and not second then id = body:match('"id":"([^"]+)"')
  else taken[#taken + 1] = now() - began end
end

function done(summary, latency, requests)
  local all, e = {}, summary.errors
  for _, thread in ipairs(threads) do
    for _, value in ipairs(thread:get("taken")) do all[#all + 1] = value end
  end
  table.sort(all)
  local function quantile(q) return all[math.max(1, math.ceil(q * #all))] or 0 end
  io.write(string.format('MARK {"requests": %%d, "seconds": %%.6f, "p50": %%.1f, "p95": %%.1f, "p99": %%.1f, "max": %%.1f, ',
    #all + e.status, summary.duration / 1e6, quantile(0.5), quantile(0.95), quantile(0.99), quantile(1)))
  io.write(string.format('"refused": %%d, "broken": %%d}\\n', e.status, e.connect + e.read + e.write + e.timeout))
end
""".replace("MARK", MARK)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts for a path: the lines of `file` in turn. pairs: an answer names a decision, whose outcome comes before the next."""

    path: str
    file: str
    pairs: bool = False


def lua(asked: Asked) -> str:
    """The script."""
    return SCRIPT % {**asdict(asked), "pairs": "true" if asked.pairs else "false", "json": JSON}


def begin(url: str, asked: Asked, *, folder: Path, connections: int, seconds: int) -> subprocess.Popen[str]:
    """Start wrk, a thread per connection. `bench.performance.load_testing.wrk.ended` reads it; its requests and times are those
    of prompts.
    """
    script = folder / f"{len(list(folder.iterdir()))}.lua"
    script.write_text(lua(asked))
    command = ["wrk", f"-t{connections}", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{STALL_S}s", "-s", str(script), url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
