"""The load balancer: its limits are the service's, and it repeats what may be repeated and nothing else."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from service.api.event_streams import COMMENT_S
from service.api.facade.errors import PATHS, error_json
from service.api.facade.upstreams import Upstream, Upstreams
from service.api.problems import CODES, Problem
from service.cli.serve import KEEP_ALIVE_S
from service.settings import Settings
from tests.deploy.balancer import CONFIG, Balancer, needs_nginx
from tests.deploy.files import ROOT, document, seconds
from tools.processes import free_port

TEXT = re.sub(r"^\s*#.*$", "", CONFIG.read_text(), flags=re.MULTILINE)
LIMIT = Settings().max_body_bytes


FACADE = "location ~ ^/v1/(chat/|images/|embeddings|responses|models) {"


def directive(name: str, text: str = TEXT) -> str:
    """The one value of a directive."""
    (found,) = set(re.findall(rf"^\s*{name} ([^;]+);", text, flags=re.MULTILINE))
    return str(found)


def facade() -> str:
    """The block for OpenAI's clients."""
    return TEXT[TEXT.index(FACADE) :].partition("}")[0]


def test_the_limits_are_those_of_the_service() -> None:
    assert int(directive("client_max_body_size")) == LIMIT
    upstream = re.search(r"upstream nextarm \{(.*?)\n    \}", TEXT, flags=re.DOTALL)
    assert upstream is not None
    kept = re.search(r"keepalive_timeout (\w+);", upstream[1])
    assert kept is not None
    assert seconds(kept[1]) < KEEP_ALIVE_S, "nginx closes an idle connection first"
    assert directive("worker_shutdown_timeout") == directive("proxy_read_timeout", facade()), "a new list cuts no answer off"
    read_s = seconds(directive("proxy_read_timeout", TEXT.replace(facade(), "")))
    assert read_s > Settings().scorer_timeout_s
    assert read_s > Settings().min_offset_wait_s + Settings().redis_timeout_s
    assert read_s > 2 * COMMENT_S, "silent event streams stay"


def test_a_call_of_an_upstream_may_take_as_long_as_the_service_waits() -> None:
    assert tuple(f"/v1/{begins}" for begins in FACADE[FACADE.index("(") + 1 : FACADE.index(")")].split("|")) == PATHS
    longest_s = Upstreams.model_fields["attempts"].default * Upstream.model_fields["timeout_s"].default
    assert seconds(directive("proxy_read_timeout", facade())) > longest_s


def test_it_answers_where_the_container_s_health_check_asks() -> None:
    asked = document(ROOT / "docker-compose.yml")["services"]["nginx"]["healthcheck"]["test"][-1]
    port, path = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/.*)", asked).groups()  # type: ignore[union-attr]
    assert f"listen {port};" in TEXT
    assert f"location = {path} " in TEXT


def test_what_it_says_itself_is_a_problem_of_the_service() -> None:
    said = [(int(status), json.loads(body)) for status, body in re.findall(r"return ([45]\d\d) '(.*)';", TEXT)]
    errors = [(status, body["error"]) for status, body in said if "error" in body]
    assert [error["code"] for _, error in errors] == ["replica_unavailable", "payload_too_large"]
    for status, error in errors:
        assert {"error": error} == error_json(status, error["code"], error["message"])
    bodies = [body for _, body in said if "error" not in body]
    assert [body["code"] for body in bodies] == ["not_found", "replica_unavailable", "payload_too_large"]
    for body in bodies:
        known = Problem(body["code"], "") if body["code"] in CODES else Problem("overloaded", "")
        assert body | {"detail": "", "code": ""} == known.document() | {"code": ""}


# -- a running one, with replicas that only pretend ---------------------------------------------------------------------------


class Pretender(BaseHTTPRequestHandler):
    """A replica: what it was asked, and what it answers, are its server's."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        assert isinstance(self.server, Replica)
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        self.server.reply(self)

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


class Replica(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Callable[[Pretender], None]) -> None:
        super().__init__(("127.0.0.1", 0), Pretender)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.reply = reply


def works(request: Pretender) -> None:
    respond(request, 200, b'{"ok": true}')


def refuses(request: Pretender) -> None:
    respond(request, 503, b'{"code": "storage_unavailable"}')


def dies(request: Pretender) -> None:
    """After it has read the request: it may have accepted it."""
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True


def respond(request: Pretender, status: int, body: bytes) -> None:
    request.send_response(status)
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@contextmanager
def balanced(
    folder: Path, *replies: Callable[[Pretender], None], silent: int = 0
) -> Iterator[tuple[httpx.Client, list[Replica]]]:
    """silent: replicas whose port is closed."""
    replicas = [Replica(reply) for reply in replies]
    for replica in replicas:
        threading.Thread(target=replica.serve_forever, args=(0.01,), daemon=True).start()
    ports = [replica.server_port for replica in replicas] + [free_port() for _ in range(silent)]
    try:
        with (
            Balancer(folder, port=free_port(), replicas=ports) as balancer,
            httpx.Client(base_url=balancer.url, trust_env=False, timeout=30.0) as client,
        ):
            yield client, replicas
    finally:
        for replica in replicas:
            replica.shutdown()
            replica.server_close()


@needs_nginx
def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    assert Balancer(tmp_path, port=free_port(), replicas=[free_port(), free_port()]).check() == ""


@needs_nginx
def test_nginx_sees_a_mistake(tmp_path: Path) -> None:
    balancer = Balancer(tmp_path, port=free_port(), replicas=[free_port()])
    path = tmp_path / "nginx.conf"
    path.write_text(path.read_text().replace("proxy_next_upstream_tries", "proxy_next_upstream_trials"))
    assert "unknown directive" in balancer.check()


@needs_nginx
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_request_that_may_be_repeated_is_given_to_another_replica(method: str, tmp_path: Path) -> None:
    with balanced(tmp_path, works, dies) as (client, replicas):
        for i in range(24):  # of one name all would go to one replica
            assert client.request(method, f"/v1/bandits/b{i}").status_code == 200
        assert len(replicas[0].asked) == 24
        assert replicas[1].asked, "the other one was tried"


@needs_nginx
def test_a_post_that_may_have_been_accepted_is_not_sent_twice(tmp_path: Path) -> None:
    with balanced(tmp_path, dies, dies) as (client, replicas):
        response = client.post("/v1/bandits/b/decisions", json={})
        assert sum(len(replica.asked) for replica in replicas) == 1
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "replica_unavailable"


@needs_nginx
def test_openai_s_clients_read_errors_in_their_form(tmp_path: Path) -> None:
    with balanced(tmp_path, dies) as (client, replicas):
        response = client.post("/v1/chat/completions", json={})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] == "replica_unavailable"
        assert len(replicas[0].asked) == 1
        response = client.post("/v1/images/generations", content=b"x" * (LIMIT + 1))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


@needs_nginx
def test_a_post_that_no_replica_has_received_is_sent_to_another_one(tmp_path: Path) -> None:
    with balanced(tmp_path, works, silent=2) as (client, replicas):
        for i in range(12):
            assert client.post(f"/v1/bandits/b{i}/decisions", json={}).status_code == 200
        assert len(replicas[0].asked) == 12


def bandits_of(replica: Replica) -> set[str]:
    return {path.split("/")[3] for _, path, _ in replica.asked}


@needs_nginx
def test_a_bandit_is_asked_of_one_replica_and_bandits_are_spread(tmp_path: Path) -> None:
    with balanced(tmp_path, works, works) as (client, replicas):
        for i in range(40):
            for path in ("", "/decisions?limit=3", "/decisions/x/outcome"):
                assert client.get(f"/v1/bandits/b{i}{path}").status_code == 200
            for path in (f"weave/b{i}/readyz", f"personalizer/b{i}/personalizer/v1.0/rank?x=1"):
                assert client.get(f"/adapters/{path}").status_code == 200
        first, second = map(bandits_of, replicas)
    assert len(first) > 0
    assert len(second) > 0
    assert not first & second
    assert len(first | second) == 40


@needs_nginx
def test_a_hot_bandit_is_spread_over_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = tmp_path / "hot.conf"
    hot.write_text(CONFIG.read_text().replace("map $bandit $slot {", "map $bandit $slot {\n        ~^hot $slot_of_4;"))
    monkeypatch.setattr("tests.deploy.balancer.CONFIG", hot)
    with balanced(tmp_path, works, works) as (client, replicas):
        for i in range(12):  # of one bandit all slots may meet on one replica
            for _ in range(8):
                assert client.get(f"/v1/bandits/hot{i}").status_code == 200
        assert len(bandits_of(replicas[0]) & bandits_of(replicas[1])) > 0


@needs_nginx
def test_the_answer_of_a_replica_is_passed_on_whatever_it_is(tmp_path: Path) -> None:
    with balanced(tmp_path, refuses, refuses) as (client, replicas):
        for _ in range(8):
            response = client.get("/v1/bandits")  # of no bandit: any replica
            assert (response.status_code, response.json()) == (503, {"code": "storage_unavailable"})
        assert sum(len(replica.asked) for replica in replicas) == 8, "each was asked of one replica only"


@needs_nginx
def test_a_replica_learns_the_client_s_address_as_nginx_sees_it(tmp_path: Path) -> None:
    with balanced(tmp_path, works) as (client, (replica,)):
        sent = {"x-forwarded-for": "203.0.113.9", "authorization": "Bearer k", "x-nextarm-min-offset": "7"}
        client.get("/v1/bandits", headers=sent)
        headers = {name.lower(): value for name, value in replica.asked[0][2].items()}
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["authorization"] == "Bearer k"
    assert headers["x-nextarm-min-offset"] == "7"
    assert headers["host"] == client.base_url.netloc.decode()


@needs_nginx
def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not(tmp_path: Path) -> None:
    with balanced(tmp_path, works) as (client, (replica,)):
        assert client.post("/v1/bandits/b/decisions", content=b"x" * LIMIT).status_code == 200
        response = client.post("/v1/bandits/b/decisions", content=b"x" * (LIMIT + 1))
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
        assert len(replica.asked) == 1


@needs_nginx
def test_metrics_are_not_those_of_a_replica_by_chance(tmp_path: Path) -> None:
    with balanced(tmp_path, works) as (client, (replica,)):
        response = client.get("/metrics")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert not replica.asked


@needs_nginx
def test_the_log_of_requests_holds_no_body_key_or_query(tmp_path: Path) -> None:
    with balanced(tmp_path, works) as (client, _):
        client.post("/v1/bandits/b/decisions?q=whisper", json={"prompt": "whisper"}, headers={"authorization": "Bearer whisper"})
    (line,) = (tmp_path / "access.log").read_text().splitlines()
    assert "whisper" not in line
    found = json.loads(line)
    assert (found["method"], found["uri"], found["status"]) == ("POST", "/v1/bandits/b/decisions", 200)
