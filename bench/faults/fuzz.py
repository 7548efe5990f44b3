"""Requests that no sane client sends, against a real server: nothing may break, and nothing may make others wait.

    python -m bench.faults.fuzz --requests 30000

Half of the requests are made from the service's own OpenAPI document: good and bad values, drawn from a seed. The other half are
bytes on a socket: broken heads, chunked nonsense, half bodies, deep and large JSON, paths that are no UTF-8, several requests at
once, heads that come slowly. `healthz` is probed throughout.

Fails (code 1) on a status of 5xx but 503, an answer that is no HTTP, an error that is no problem document, a `healthz` above
`--healthz-ms`, and a server that ended.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from bench.faults.server import Server

WORKERS = 4
PATIENCE_S = 20.0
PROBE_EVERY_S = 0.02
ARMS = [{"name": "a"}, {"name": "b/c", "price": 0.5}]
BANDITS: dict[str, Any] = {
    "demo": {"policy": {"kind": "fd-ucb"}, "arms": ARMS, "output": {"dim": 3}},
    "plain": {"policy": {"kind": "epsilon-greedy"}, "arms": ARMS},
    "vector": {"policy": {"kind": "pak-ucb", "random_features": 16}, "arms": ARMS, "prompt": {"dim": 3}},
}
ODD: list[Any] = [
    None, True, 0, -1, 1e308, -1e-320, 2**63, 10**30, "", "a", "é" * 9, "\u200b", "\x00", "../..", "x" * 5000, [], {}, {"": 0},
]  # fmt: skip


class Record:
    """What came back, of every request; examples of what must not."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.broken: dict[str, str] = {}  # fault -> the first request that met it
        self._lock = threading.Lock()

    def add(self, kind: str, request: bytes, answer: tuple[int, str, bytes] | str) -> None:
        """answer: status, content type and body; or why there is none."""
        if isinstance(answer, str):
            status, fault = "closed", "" if answer == "closed" else answer
        else:
            number, content, body = answer
            status = str(number)
            fault = fault_of(number, content, body) if body or not request.startswith(b"HEAD ") else ""
        with self._lock:
            self.statuses[f"{kind} {status}"] += 1
            if fault:
                self.broken.setdefault(fault, repr(request[:400]))


def fault_of(status: int, content: str, body: bytes) -> str:
    """Why an answer must not be like this; "" where it may."""
    if status >= 500 and status != 503:
        return f"{status}: {body[:200]!r}"
    if status < 400:
        return ""
    if not content.startswith("application/problem+json"):
        return f"{status} is no problem document but {content or 'nothing'}: {body[:100]!r}"
    try:
        problem = json.loads(body)
    except ValueError:
        return f"{status}: the problem document is no JSON: {body[:100]!r}"
    whole = isinstance(problem, dict) and {"type", "title", "status", "code", "detail"} <= problem.keys()
    return "" if whole and problem["status"] == status else f"{status}: the problem document lacks fields: {body[:200]!r}"


# -- requests by the document --------------------------------------------------------------------------------------------------


class Drawn:
    """Values for the schemas of an OpenAPI document; one in eight is of another type, or beyond its bounds."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._document = document
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self.random = random.Random(seed)

    def request(self) -> bytes:
        """One request, as bytes."""
        method, path, operation = self.random.choice(self._operations)
        if (method, path) == ("DELETE", "/v1/bandits/{name}") and self.random.random() < 0.9:
            method, path, operation = self._operations[0]
        query = []
        for parameter in operation.get("parameters", []):
            value = self._text(parameter)
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(value, safe=""))
            elif parameter["in"] == "query" and self.random.random() < 0.5:
                query.append(f"{parameter['name']}={quote(value)}")
        body = b""
        if described := operation.get("requestBody", {}).get("content", {}).get("application/json"):
            body = json.dumps(self.value(described["schema"])).encode()
        return http(method, path + ("?" + "&".join(query) if query else ""), body)

    def _text(self, parameter: dict[str, Any]) -> str:
        known = {"name": [*BANDITS, "new"], "arm": ["a", "b/c", "new"], "decision_id": [f"d{i}" for i in range(20)]}
        if parameter["name"] in known and self.random.random() < 0.8:
            return self.random.choice(known[parameter["name"]])
        return str(self.value(parameter["schema"]))

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:  # noqa: C901 - one case per keyword of JSON Schema
        """A value of a schema, or a wrong one."""
        draw = self.random
        if draw.random() < 0.04 or depth > 12:
            return draw.choice(ODD)
        while "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if schema.get("examples") and draw.random() < 0.4:
            return draw.choice(schema["examples"])
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self.value(draw.choice(schema[key]), depth + 1)
        if "enum" in schema or "const" in schema:
            return draw.choice(schema.get("enum") or [schema["const"]])
        match schema.get("type"):
            case "object":
                wanted = set(schema.get("required", ()))
                fields = schema.get("properties", {})
                return {name: self.value(fields[name], depth + 1) for name in fields if name in wanted or draw.random() < 0.4}
            case "array":
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(draw.choice((0, 1, 2, 3, 3)))]
            case "string":
                return draw.choice(["a", "demo", f"d{draw.randrange(20)}", "hello", "é", "AAAAAAAAAAAAAAAA", "x" * 70])
            case "integer":
                return draw.choice([0, 1, 2, 3, 64, 1000, -1, 2**31])
            case "number":
                return draw.choice([0.0, 0.5, 1.0, -1.0, draw.gauss(0, 10), 1e300])
            case "boolean":
                return draw.random() < 0.5
        return draw.choice(ODD)


# -- bytes ---------------------------------------------------------------------------------------------------------------------


def http(method: str, target: str, body: bytes = b"", *more: str) -> bytes:
    """A well-formed request."""
    head = [f"{method} {target} HTTP/1.1", "Host: localhost", *more]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


DECIDE = "/v1/bandits/plain/decisions"
POST = f"POST {DECIDE} HTTP/1.1\r\nHost: a\r\n".encode()


def garbage(draw: random.Random) -> tuple[str, bytes]:
    """A kind of nonsense, and its bytes."""
    good = http("POST", DECIDE, b"{}")
    deep = draw.choice((50, 5_000, 200_000))
    kinds: dict[str, Callable[[], bytes]] = {
        "noise": lambda: draw.randbytes(draw.randrange(1, 400)) + b"\r\n\r\n",
        "mutated": lambda: _mutated(good, draw),
        "cut": lambda: good[: draw.randrange(len(good))],
        "head": lambda: b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
        + draw.choice((b"No colon\r\n", b": x\r\n", b"A\x00: x\r\n", b"X: " + b"y" * 70_000 + b"\r\n", b" \r\n"))
        + b"\r\n",
        "length": lambda: POST + b"Content-Type: application/json\r\nContent-Length: "
        + draw.choice((b"-1", b"x", b"99999999999999999999", b"1, 2", b"5", b"\xb2")) + b"\r\n\r\n{}",
        "chunked": lambda: POST + b"Transfer-Encoding: chunked\r\n\r\n"
        + draw.choice((b"2\r\n{}\r\n0\r\n\r\n", b"zz\r\n{}", b"ffffffffffffffffff\r\n{", b"-2\r\n{}\r\n", b"0\r\n\r\n")),
        "deep": lambda: http("POST", DECIDE, b"[" * deep + b"]" * draw.choice((0, deep))),
        "large": lambda: http("POST", DECIDE, b'{"id": "' + b"x" * draw.choice((70, 300_000, 2_000_000)) + b'"}'),
        "many": lambda: http("POST", DECIDE, b"[" + b"[]," * draw.choice((100, 60_000, 300_000)) + b"1]"),
        "no json": lambda: http("POST", DECIDE, draw.choice((b"{", b"\xff\xfe", b'{"a":1,"a":2}', b"9" * 4400, b'"\\ud800"'))),
        "path": lambda: b"GET /v1/bandits/"
        + draw.choice((b"%C3%28", b"%", b"%00", b"\xff", b"..", b"a/../b", b"%2e%2e/x", b"a" * 9000, b"a?x=%FF&limit=\xff"))
        + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "method": lambda: http(draw.choice(("BREW", "CONNECT", "HEAD", "TRACE", "get", "OPTIONS")), "/healthz"),
        "pipelined": lambda: good * draw.randrange(2, 20),
    }  # fmt: skip
    kind = draw.choice(list(kinds))
    return kind, kinds[kind]()


def _mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


# -- sending -------------------------------------------------------------------------------------------------------------------


def answer_to(port: int, request: bytes, *, slowly: bool = False, ends: bool) -> tuple[int, str, bytes] | str:
    """The first answer, "closed" where the connection ended without one, or what is wrong with what came. ends: the client closes
    its side after the request, so that half a request has an end; a server may then drop an answer that it has yet to work out.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        try:
            for part in [request[i : i + 7] for i in range(0, 70, 7)] + [request[70:]] if slowly else [request]:
                connection.sendall(part)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent; there may be an answer all the same
        response = HTTPResponse(connection, method=request.split(b" ", 1)[0].decode("latin-1"))
        try:
            response.begin()
            return response.status, response.getheader("content-type", ""), response.read()
        except TimeoutError:
            return f"no answer in {PATIENCE_S:g} s"
        except (ConnectionError, HTTPException) as error:
            quiet = (
                isinstance(error, ConnectionError) or not str(error).strip("' ") or type(error).__name__ == "RemoteDisconnected"
            )
            return "closed" if quiet else f"no HTTP: {type(error).__name__} {error}"


def probed(port: int, stop: threading.Event) -> Iterator[float]:
    """Seconds of `healthz`, again and again."""
    while not stop.wait(PROBE_EVERY_S):
        started = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("GET", "/healthz")
            alive = connection.getresponse().status == 200
        except (OSError, HTTPException):
            alive = False
        finally:
            connection.close()
        yield time.perf_counter() - started if alive else float("inf")


def run(server: Server, *, requests: int, seed: int, record: Record) -> list[float]:
    """Send everything; seconds of every probe."""
    for name, body in BANDITS.items():
        server.ask("PUT", f"/v1/bandits/{name}", body)
    document = server.ask("GET", "/openapi.json").body
    stop, probes = threading.Event(), list[float]()
    watch = threading.Thread(target=lambda: probes.extend(probed(server.port, stop)))
    watch.start()

    def work(worker: int) -> None:
        drawn = Drawn(document, seed + worker)
        for number in range(worker, requests, WORKERS):
            if server.process.poll() is not None:
                return
            is_whole = bool(number // WORKERS % 2)
            kind, request = ("by the document", drawn.request()) if is_whole else garbage(drawn.random)
            slowly = drawn.random.random() < 0.05
            record.add(kind, request, answer_to(server.port, request, slowly=slowly, ends=not is_whole))

    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(work, range(WORKERS)))
    finally:
        stop.set()
        watch.join()
    return sorted(probes)


def main() -> int:
    """Run the fuzzer and exit with 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--healthz-ms", type=float, default=250.0, help="Slowest probe that is allowed; 0 = do not judge.")
    given = parser.parse_args()
    record, console = Record(), Console()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), settings={"LOG_LEVEL": "error"})
        server.start()
        try:
            server.wait_until_ready()
            probes = run(server, requests=given.requests, seed=given.seed, record=record)
            if server.process.poll() is not None:
                record.broken[f"the server ended, code {server.process.returncode}"] = ""
        finally:
            server.kill()
    slowest = 1e3 * max(probes, default=float("inf"))
    if given.healthz_ms and slowest > given.healthz_ms:
        record.broken[f"healthz took {slowest:.0f} ms"] = ""
    table = Table("request and status", "count")
    for name, count in sorted(record.statuses.items()):
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(f"{len(probes):,} probes of healthz: median {1e3 * probes[len(probes) // 2]:.1f} ms, slowest {slowest:.0f} ms")
    for fault, request in record.broken.items():
        console.print(f"BROKEN {fault}\n    {request}", markup=False)
    return 1 if record.broken else 0


if __name__ == "__main__":
    sys.exit(main())
