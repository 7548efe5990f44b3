"""The wire between a service and its store: what it forwards, holds and leads elsewhere; and clients that go elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest

from bench.faults.clients import Client, Pool
from bench.faults.server import Server
from bench.faults.wire import Wire
from tools.processes import free_port

PATIENCE_S = 10.0


@contextmanager
def echo(word: bytes) -> Iterator[int]:
    """A server that answers with its word and what it got; its port."""
    listening = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while chunk := connection.recv(100):
                connection.sendall(word + chunk)

    threading.Thread(target=serve, daemon=True).start()
    with closing(listening):
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)


def test_a_wire_forwards_holds_back_while_it_is_cut_and_leads_elsewhere() -> None:
    with echo(b"one:") as one, echo(b"two:") as two, Wire(one) as wire:
        with socket.create_connection(("127.0.0.1", wire.port), PATIENCE_S) as speaking:
            speaking.sendall(b"a")
            assert speaking.recv(100) == b"one:a"
            wire.cut()
            speaking.sendall(b"b")
            speaking.settimeout(0.2)
            with pytest.raises(TimeoutError):
                speaking.recv(100)
            wire.mend()
            speaking.settimeout(PATIENCE_S)
            assert speaking.recv(100) == b"one:b"
            wire.lead_to(two)
            with suppress(ConnectionResetError):
                assert speaking.recv(100) == b"", "the old connection is closed"
        with socket.create_connection(("127.0.0.1", wire.port), PATIENCE_S) as again:
            again.sendall(b"c")
            assert again.recv(100) == b"two:c"


def test_ports_are_never_handed_out_twice() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    assert max(ports) < 32_768


class FixedStatus:
    """A replica, as far as a client sees it: a port that answers every request with one status, or that refuses connections."""

    def __init__(self, status: int) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                asked.append(self.path)
                body = b'{"offset": 2, "arm": "a"}' if status == 201 else b'{"code": "storage_unavailable"}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.asked = asked
        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def connect(self) -> object:
        import http.client

        return http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=PATIENCE_S)


def test_a_client_that_is_refused_asks_another_replica_with_the_same_id() -> None:
    full, well = FixedStatus(503), FixedStatus(201)
    client = Client(cast(list[Server], [full, well]), Pool(), number=0, seed=3)
    client._ask("decide", ("chance", "d1"))
    while client._unsure:
        client._ask(*client._unsure.popleft())
    assert client.record.decided == {("chance", "d1"): (2, "a")}
    assert client.record.counts["refused"] == len(full.asked) >= 1
    assert len(client.record) == 1
    client._connection.close()
    for told in (full, well):
        told.server.shutdown()
        told.server.server_close()
