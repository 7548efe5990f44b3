"""A server on loopback that answers as a test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DECISION = {"id": "d", "bandit": "b", "episode": "d", "attempt": 1, "arm": "large", "stop": False, "offset": 2}


@dataclass
class Answer:
    """status 0 breaks the connection; hang: never answers, until the server ends."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False


def problem(status: int, code: str, **headers: str) -> Answer:
    """A refusal of the service."""
    body = {"type": "about:blank", "title": "no", "status": status, "code": code, "detail": "of a test", "request_id": "r-1"}
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


BROKEN = Answer(0)


@dataclass
class Script:
    """answers: the next ones; once they are used up, each decision is made.  seen: method, path, body of every request."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def scripted(*answers: Answer) -> Iterator[Script]:
    """A server that runs in a thread."""
    script = Script(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            script.seen.append((self.command, self.path, json.loads(body) if body else None))
            script.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = script.answers.pop(0) if script.answers else Answer(201, DECISION)
            if answer.hang:
                script.over.wait()
            if answer.hang or not answer.status:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            content = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"content-length": str(len(content)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        script.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield script
        finally:
            script.over.set()
            server.shutdown()
            thread.join()
