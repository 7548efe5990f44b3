"""What the routes for OpenAI's clients cost beside the upstream's own answer: `python -m bench.performance.facade`.

Chat completions, whole and as streams of three chunks, one after the other on one connection: to a stand-in for the upstream, and
to the service in front of it, in turns. CPU is that of the service's process for a whole request with decision and outcome, so
it is more than what comes before the first byte. One bare decision with its outcome says how quick the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tools.processes import Server

BODY = {"model": "bandit/router", "messages": [{"role": "user", "content": "Translate this to French: good morning"}]}
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


def _chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


WHOLE = json.dumps(
    {"id": "c", "model": "m", "choices": [{"index": 0, "message": {"content": "Bonjour"}}], "usage": USAGE}
).encode()
PIECES = (
    _chunk(delta={"content": "Bon"}),
    _chunk(delta={"content": "jour"}),
    _chunk(delta={}, finish_reason="stop") + b"data: [DONE]\n\n",
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(WHOLE), WHOLE)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def _upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if b'"stream":true' not in await reader.readexactly(length):
                writer.write(ANSWER)
                continue
            writer.write(STREAM)
            for piece in PIECES:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await asyncio.sleep(0)  # a piece is a packet of its own
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        writer.close()


@contextmanager
def upstream() -> Iterator[str]:
    """The URL of the stand-in, in a thread of its own."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_upstream, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(server.wait_closed())
        loop.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.performance.facade", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=1000, help="requests of each kind (default: 1000)")
    parser.add_argument("--turns", type=int, default=5, help="turns that they take (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nextarm-facade-") as folder, upstream() as url:
        path = Path(folder) / "upstreams.toml"
        path.write_text(f'[arms.small]\nbase_url = "{url}"\nmodel = "m"\n[arms.large]\nbase_url = "{url}"\nmodel = "m"\n')
        server = Server(Path(folder), store="memory://", settings={"upstreams": str(path), "log_level": "warning"})
        server.start()
        try:
            server.wait_until_ready()
            measure(server, url, rounds=given.rounds // given.turns, turns=given.turns)
        finally:
            server.end()


def measure(server: Server, url: str, *, rounds: int, turns: int) -> None:
    """Print a line for each kind of request: milliseconds to the first byte, and CPU of the service."""
    own = f"http://{server.host}:{server.port}/v1"
    with httpx2.Client(trust_env=False, timeout=60.0) as http:
        made = http.put(
            f"{own}/bandits/router", json={"policy": {"kind": "greedy"}, "arms": [{"name": "small"}, {"name": "large"}]}
        )
        made.raise_for_status()

        def chat(base: str, *, stream: bool) -> float:
            began = time.perf_counter()
            with http.stream("POST", f"{base}/chat/completions", json={**BODY, "stream": stream}) as response:
                pieces = response.iter_bytes()
                next(pieces)
                first = time.perf_counter() - began
                for _ in pieces:
                    pass
            return first

        def bare(number: int) -> float:
            began = time.perf_counter()
            decided = http.post(f"{own}/bandits/router/decisions", json={}).json()["id"]
            http.put(f"{own}/bandits/router/decisions/{decided}/outcome", json={"cost": 1.0})
            return time.perf_counter() - began

        kinds: dict[str, Callable[[int], float]] = {
            "upstream, whole": lambda _: chat(url, stream=False),
            "nextarm, whole": lambda _: chat(own, stream=False),
            "upstream, stream": lambda _: chat(url, stream=True),
            "nextarm, stream": lambda _: chat(own, stream=True),
            "decision + outcome": bare,
        }
        for kind in kinds.values():  # warm
            for number in range(50):
                kind(number)
        firsts: dict[str, list[float]] = {name: [] for name in kinds}
        cpu: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(turns):
            for name, kind in kinds.items():
                before = server.cpu_s()
                firsts[name] += [kind(number) for number in range(rounds)]
                cpu[name].append((server.cpu_s() - before) / rounds)
    for name in kinds:
        print(
            f"{name:20} first byte p50 {statistics.median(firsts[name]) * 1e3:6.2f} ms"
            f"   CPU of the service {statistics.median(cpu[name]) * 1e3:5.2f} ms"
        )


if __name__ == "__main__":
    main()
