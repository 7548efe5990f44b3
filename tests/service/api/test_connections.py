"""What a client holds without having sent a request is bounded, and what is no request is answered with a problem document."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.connections import MAX_HEAD_BYTES, PROBE_CONNECTIONS, available_connections
from tests.service.http_client import JSON, PROMPT, VECTOR
from tests.service.servers import PATIENCE_S, Server, wait_until

Start = Callable[..., Server]
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY_HEAD = b"PUT /v1/bandits/b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nx-request-id: mine\r\n"


@pytest.fixture
def connect() -> Iterator[Callable[[Server], socket.socket]]:
    with ExitStack() as stack:

        def opened(server: Server) -> socket.socket:
            host, _, port = server.url.removeprefix("http://").partition(":")
            return stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))

        yield opened


def read_all(connection: socket.socket) -> bytes:
    """Up to the end; a reset is a failure of the test."""
    found = b""
    while chunk := connection.recv(2**16):
        found += chunk
    return found


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


def problem(answer: bytes) -> tuple[int, str]:
    """Status and code, where the answer is a whole problem document that ends its connection."""
    status, headers, body = parsed(answer)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert body["request_id"] == headers["x-request-id"]
    assert body["status"] == status
    return status, body["code"]


def read_one(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """The next answer, whose length is given."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(2**16)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(2**16)
    return parsed(head + b"\r\n\r\n" + body)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


Connect = Callable[[Server], socket.socket]


# -- what is no request --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem_document(start_server: Start, connect: Connect, sent: bytes) -> None:
    server = start_server(store="memory://")
    connection = connect(server)
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    assert problem(read_all(connection)) == (400, "malformed_request")
    with server.client() as client:
        assert 'nextarm_problems_total{code="malformed_request"} 1.0' in client.get("/metrics").text
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("target", "header", "status"),
    [
        ("http://evil.example/v1/bandits", "localhost", 421),
        ("HTTP://evil.example:8000/v1/bandits?limit=1", "localhost", 421),
        ("http://localhost@evil.example/v1/bandits", "localhost", 421),
        ("http://evil.example@localhost/v1/bandits", "localhost", 421),
        ("http://localhost:8000/v1/bandits", "evil.example", 200),
        ("http://[::1]/v1/bandits", "localhost", 200),
        ("/v1/bandits?after=http://evil.example/", "evil.example", 421),
    ],
)
def test_the_host_in_a_request_target_comes_before_the_header(
    start_server: Start, connect: Connect, target: str, header: str, status: int
) -> None:
    server = start_server(store="memory://")
    connection = connect(server)
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {header}\r\nConnection: close\r\n\r\n".encode())
    assert parsed(read_all(connection))[0] == status
    assert server.stop() == 0


@pytest.mark.parametrize("ended", [True, False], ids=["a whole head", "a head that never ends"])
@pytest.mark.parametrize("shape", ["one long header", "many headers", "a long path"])
def test_headers_are_limited(start_server: Start, connect: Connect, shape: str, ended: bool) -> None:
    server = start_server(store="memory://")
    size = MAX_HEAD_BYTES + 1
    filling = {
        "one long header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * size,
        "many headers": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"name: value\r\n" * (size // 13 + 1),
        "a long path": b"GET /" + b"a" * size,
    }[shape]
    end = {"many headers": b"\r\n", "a long path": b" HTTP/1.1\r\nHost: localhost\r\n\r\n"}.get(shape, b"\r\n\r\n")
    connection = connect(server)
    connection.sendall(filling + (end if ended else b""))
    assert problem(read_all(connection)) == (431, "headers_too_large")
    with server.client() as client:
        assert client.get("/healthz", headers={"x": "a" * (MAX_HEAD_BYTES - 1000)}).status_code == 200
    assert server.stop() == 0


def test_a_header_of_many_megabytes_ends_its_connection_early(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://")
    connection = connect(server)
    sent = 0
    connection.sendall(b"GET / HTTP/1.1\r\nx: ")
    with contextlib.suppress(ConnectionError):
        while sent < 2**28:
            sent += connection.send(b"a" * 2**16)
    assert sent < 2**28
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
    assert server.stop() == 0


def test_large_bodies_and_requests_behind_each_other_are_no_large_headers(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://")
    body = b'{"policy": {"kind": "greedy"}, "arms": [{"name": "a"}]}' + b" " * 2**17
    one = BODY_HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    connection = connect(server)
    connection.sendall(one * 3 + PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    answers = read_all(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"201", b"200", b"200", b"200"], "".join(server.lines)
    assert server.stop() == 0


def test_trailers_and_extensions_of_chunks_are_limited(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://")
    for filling in (b"1;" + b"x" * 4 * MAX_HEAD_BYTES, b"0\r\n" + b"name: value\r\n" * (MAX_HEAD_BYTES // 3)):
        connection = connect(server)
        connection.sendall(BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(filling)
        assert problem(read_all(connection)) == (400, "malformed_request")
    assert server.stop() == 0


# -- in time -------------------------------------------------------------------------------------------------------------------


def test_a_head_and_a_body_have_a_time_to_arrive_in(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://", head_timeout_s="0.2", body_timeout_s="0.2")
    slow_head, slow_body, silent = connect(server), connect(server), connect(server)
    slow_head.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
    slow_body.sendall(BODY_HEAD + b"Content-Length: 100\r\n\r\n{")
    assert problem(read_all(slow_head)) == (408, "request_timeout")
    status, headers, body = parsed(read_all(slow_body))
    assert (status, body["code"], body["request_id"], headers["x-request-id"]) == (408, "request_timeout", "mine", "mine")
    silent.sendall(PROBE)  # nothing was begun on it: it is an idle connection
    assert read_one(silent)[0] == 200
    second = connect(server)
    second.sendall(PROBE + b"GET /he")
    assert b"408" in read_all(second), "the next request on a connection has the same time"
    assert server.stop() == 0
    assert sum("did not arrive in time" in line for line in server.lines) == 1, "one line in ten seconds"


def test_the_rest_of_a_request_that_was_answered_early_has_a_time_to_arrive_in(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://", body_timeout_s="0.2", api_keys="secret-key")
    connection = connect(server)
    connection.sendall(BODY_HEAD + b"Content-Length: 100\r\n\r\n{")
    assert read_one(connection)[0] == 401
    wait_until(lambda: is_closed(connection))
    assert server.stop() == 0


# -- how many ------------------------------------------------------------------------------------------------------------------


def test_probes_are_answered_while_slow_heads_fill_the_limit(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://", max_connections="5")
    slow = [connect(server) for _ in range(40)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
    for path in ("/healthz", "/readyz", "/v1/bandits"):
        assert httpx.get(server.url + path, trust_env=False, timeout=PATIENCE_S).status_code == 200
    assert all(is_closed(connection) for connection in slow[:30]), "those that waited longest gave way"
    assert server.stop() == 0
    assert sum("connections are closed" in line for line in server.lines) == 1


def test_probes_are_answered_while_half_sent_bodies_fill_the_limit_and_the_rest_is_refused(
    start_server: Start, connect: Connect
) -> None:
    server = start_server(store="memory://", max_connections="5")
    half = [connect(server) for _ in range(5)]
    for connection in half:
        connection.sendall(PROBE)
        read_one(connection)
        connection.sendall(BODY_HEAD + b"Content-Length: 100\r\n\r\n{")
    slow = [connect(server) for _ in range(3 * PROBE_CONNECTIONS)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/v1/bandits", 503)):
        answer = httpx.get(server.url + path, trust_env=False, timeout=PATIENCE_S)
        assert (answer.status_code, answer.headers["connection"]) == (status, "close")
    assert (answer.json()["code"], answer.headers["retry-after"]) == ("overloaded", "1")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    for connection in half:  # they were not disturbed
        connection.sendall(b" " * 99)
        assert read_one(connection)[0] == 400
    assert server.stop() == 0


def test_an_idle_connection_is_closed_after_unfinished_heads(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://", max_connections="3")
    idle = connect(server)
    idle.sendall(PROBE)
    assert read_one(idle)[0] == 200
    for _ in range(20):
        connect(server).sendall(b"GET /healthz HTTP/1.1\r\n")
    idle.sendall(PROBE)
    assert read_one(idle)[0] == 200
    assert server.stop() == 0


def test_a_low_limit_of_file_descriptors_leaves_room_for_probes_and_the_store(tmp_path: Path, connect: Connect) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    server = Server.launch(store=f"sqlite:///{tmp_path}/bandits.db", folder=tmp_path, settings={}, before=few)
    try:
        slow = [connect(server) for _ in range(60)]
        for connection in slow:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with server.client() as client:
            for path in ("/healthz", "/readyz"):
                assert client.get(path).status_code == 200
            assert client.put("/v1/bandits/b", json=VECTOR).status_code == 201
            assert client.post("/v1/bandits/b/decisions", json=PROMPT).status_code == 201
        assert server.stop() == 0
        assert any("limit of file descriptors allows" in line for line in server.lines)
    finally:
        server.end()


def test_as_many_connections_as_asked_for_where_descriptors_allow_them() -> None:
    assert available_connections(10) == 10


# -- bodies --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_is_answered_and_not_reset(start_server: Start, connect: Connect, chunked: bool) -> None:
    server = start_server(store="memory://", max_body_bytes="1048576")
    connection = connect(server)
    size = 8 * 2**20
    if chunked:
        connection.sendall(BODY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(size // 2**16):
            connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
    else:
        connection.sendall(BODY_HEAD + b"Content-Length: %d\r\n\r\n" % size)
        connection.sendall(b" " * size)
    assert problem(read_all(connection)) == (413, "payload_too_large")
    assert server.stop() == 0


def test_half_sent_bodies_are_limited_all_together(start_server: Start, connect: Connect) -> None:
    server = start_server(store="memory://", max_body_bytes="1048576", max_bodies_bytes="2097152", max_concurrent="1")
    half = [connect(server) for _ in range(8)]
    for connection in half:
        connection.sendall(BODY_HEAD + b"Content-Length: 1048576\r\n\r\n" + b" " * 700_000)

    def refused() -> bool:
        text = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=PATIENCE_S).text
        return 'nextarm_problems_total{code="overloaded"} 6.0' in text

    wait_until(refused)  # two of 700,000 bytes are held, whichever came first
    answers = []
    for connection in half:
        connection.setblocking(False)
        try:
            answers.append(connection.recv(2**16))
        except BlockingIOError:
            answers.append(b"")
            connection.close()
    assert sorted(problem(answer) if answer else (0, "") for answer in answers) == [(0, "")] * 2 + [(503, "overloaded")] * 6
    with server.client() as client:  # what they held is given back
        wait_until(lambda: client.put("/v1/bandits/b", json=VECTOR).status_code in (200, 201))
        padded = json.dumps(PROMPT).encode() + b" " * 1_000_000
        for _ in range(5):
            assert client.post("/v1/bandits/b/decisions", content=padded, headers=JSON).status_code == 201
    assert server.stop() == 0


# -- behind a proxy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trusted", "limited"), [("", True), ("10.0.0.0/8", True), ("127.0.0.1", False), ("*", False)])
def test_a_forwarded_address_counts_only_from_a_proxy_that_is_trusted(
    start_server: Start, monkeypatch: pytest.MonkeyPatch, trusted: str, limited: bool
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # the server's own variable, which has no say
    server = start_server(store="memory://", rate_limit="0.001", trusted_proxies=trusted)
    with server.client() as client:
        statuses = [client.get("/v1/bandits", headers={"x-forwarded-for": f"203.0.113.{i}"}).status_code for i in range(3)]
        assert statuses == [200, 429, 429] if limited else statuses == [200, 200, 200]
        again = client.get("/v1/bandits", headers={"x-forwarded-for": "198.51.100.7, 203.0.113.1"})
        assert again.status_code == 429 or trusted == "*"
    assert server.stop() == 0
