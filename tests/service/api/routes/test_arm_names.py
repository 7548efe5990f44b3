"""Names of arms: any printable name with slashes, in bodies and paths; none that looks like another one or like no name."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest

from service.engine import events
from service.engine.events import NewArm
from service.storage.base import Log
from service.storage.sqlite.store import SqliteStorage
from tests.deploy.balancer import Balancer, needs_nginx
from tests.service.drivers import created
from tests.service.http_client import GREEDY, Service, answered, failed, opened, paths
from tests.service.servers import Server
from tools.processes import free_port

SLASHED = ["openai/gpt-5", "a/b/c", "meta-llama/Llama-3.1-8B:free", "~/.x/..y", "größe/字"]

REFUSED = {
    "empty": "",
    "a blank": " ",
    "a blank at the end": "small ",
    "a blank at the start": " small",
    "a no-break space": "a\u00a0b",
    "a zero-width space": "small\u200b",
    "a zero-width space alone": "\u200b",
    "a byte order mark": "\ufeffsmall",
    "right to left": "\u202ertl",
    "a Hangul filler": "\u3164",
    "a blank braille pattern": "\u2800",
    "a variation selector": "small\ufe0f",
    "NFD": "e\u0301",
    "a line separator": "a\u2028b",
    "a paragraph separator": "a\u2029b",
    "private use": "\ue000",
    "unassigned": "\u0378",
    "a line feed": "a\nb",
    "a line feed at the end": "a\n",
    "NUL": "a\x00",
    "DEL": "a\x7f",
    "129 characters": "a" * 129,
}

SEGMENTS = [".", "..", "/", "/a", "a/", "a//b", "a/./b", "a/../b", "../b", "a/.."]


@pytest.mark.parametrize("name", SLASHED)
async def test_an_arm_may_have_slashes_in_its_name_and_they_may_be_encoded(service: Service, name: str) -> None:
    await service.create(body={**GREEDY, "arms": [{"name": name}]})
    for path in (quote(name, safe=""), quote(name)):
        changed = await service.put(f"/v1/bandits/b/arms/{path}", {"price": 1.5})
        assert (changed.status_code, answered(changed)["name"]) == (200, name)
    decision = await service.decide(body={"arms": [name]})
    assert (decision["arm"], list(decision["weights"])) == (name, [name])
    await service.observe(decision["id"], {"reward": 0.5, "arm": name})
    assert (await service.delete(f"/v1/bandits/b/arms/{quote(name)}")).status_code == 204
    assert not (await service.arm(name))["active"]
    added = await service.put(f"/v1/bandits/b/arms/{quote('new/' + name)}", {})
    assert (added.status_code, answered(added)["name"]) == (201, f"new/{name}")


@pytest.mark.parametrize("name", [*REFUSED.values(), *SEGMENTS], ids=[*REFUSED, *SEGMENTS])
async def test_a_name_that_looks_empty_or_like_another_one_is_refused_in_a_body(service: Service, name: str) -> None:
    response = await service.put("/v1/bandits/b", {**GREEDY, "arms": [{"name": "fine"}, {"name": name}]})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["arms.1.name"]
    assert "pattern" not in response.text
    assert failed(await service.get("/v1/bandits/b")) == (404, "bandit_not_found")


async def test_every_wrong_name_of_a_body_is_listed(service: Service) -> None:
    response = await service.put("/v1/bandits/b", {**GREEDY, "arms": [{"name": ".."}, {"name": "fine"}, {"name": "a "}]})
    assert paths(response) == ["arms.0.name", "arms.2.name"]


@pytest.mark.parametrize(
    "name", [name for name in REFUSED.values() if name], ids=[label for label in REFUSED if label != "empty"]
)
async def test_and_in_a_path(service: Service, name: str) -> None:
    await service.create()
    response = await service.put(f"/v1/bandits/b/arms/{quote(name, safe='')}", {})
    assert failed(response) == (422, "invalid_request")
    assert paths(response) == ["arm"]
    assert await service.offset() == 1


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("name", SEGMENTS)
async def test_a_path_that_could_be_read_as_another_one_is_malformed(service: Service, name: str, method: str) -> None:
    await service.create()
    encoded = quote(name, safe="").replace(".", "%2e")
    response = await service.ask(method, f"/v1/bandits/b/arms/{encoded}")
    assert failed(response) == (400, "malformed_path")
    assert await service.offset() == 1


@pytest.mark.parametrize(
    "path", ["/v1/bandits/%FF", "/v1/bandits/b/arms/%C3", "/v1/bandits/b/arms/100%", "/v1/bandits/b/decisions/%zz"]
)
async def test_a_path_that_is_not_utf_8_is_malformed(service: Service, path: str) -> None:
    await service.create()
    for method in ("GET", "PUT", "DELETE"):
        assert failed(await service.ask(method, path)) == (400, "malformed_path")


TARGETS = [
    b"/v1/bandits/b/arms/a/../..",
    b"/v1/bandits/b/arms/..",
    b"/v1/bandits/b/arms/.",
    b"/v1/bandits/b/arms/a%2F..%2F..",
    b"/v1/bandits/b/arms/%2e%2E",
    b"/v1/bandits/b/arms//",
    b"/v1/bandits/b/",
    b"/v1/bandits/x/../b",
    b"/v1/./bandits/b",
    b"/v1//bandits/b",
    b"//v1/bandits/b",
    b"http://localhost/v1/bandits/x/../b",
    b"/v1/bandits/b/arms/\xff",
    b"/v1/bandits/b/arms/%ff",
]


def status_of(url: str, method: bytes, target: bytes) -> int:
    """Sent as it is: clients resolve such paths before they send them."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(
            method + b" " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    return int(answer.split(b" ")[1])


def test_no_target_that_goes_up_reaches_another_resource(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server()
    with server.client() as client:
        assert client.put("/v1/bandits/b", json=GREEDY).status_code == 201
        for target in TARGETS:
            for method in (b"DELETE", b"PUT", b"GET"):
                assert status_of(server.url, method, target) == 400, (method, target)
        assert client.get("/v1/bandits/b").json()["offset"] == 1


@needs_nginx
def test_names_with_slashes_pass_through_nginx_as_they_are(start_server: Callable[..., Server], tmp_path: Path) -> None:
    server = start_server()
    port = urlsplit(server.url).port
    assert port is not None
    with (
        Balancer(tmp_path, port=free_port(), replicas=[port]) as balancer,
        httpx.Client(base_url=balancer.url, trust_env=False, timeout=30.0) as client,
    ):
        assert client.put("/v1/bandits/b", json=GREEDY).status_code == 201
        assert client.put("/v1/bandits/b/arms/openai/gpt-5", json={}).status_code == 201
        assert client.put("/v1/bandits/b/arms/openai%2Fgpt-5", json={}).status_code == 200
        assert client.put(f"/v1/bandits/b/arms/{quote('größe %/字', safe='')}", json={}).json()["name"] == "größe %/字"
        assert client.delete("/v1/bandits/b/arms/openai%2Fgpt-5").status_code == 204
        for target in TARGETS:
            if target.startswith(b"http:"):
                continue  # nginx sends the path alone, resolved by itself
            assert status_of(balancer.url, b"DELETE", target) == 400, target
        assert [arm["active"] for arm in client.get("/v1/bandits/b").json()["arms"]] == [True, True, False, True]


async def test_metrics_name_an_arm_with_slashes_and_routes_by_their_template(service: Service) -> None:
    await service.create()
    await service.put("/v1/bandits/b/arms/openai/gpt-5", {})
    text = (await service.get("/metrics")).text
    assert 'nextarm_pending{arm="openai/gpt-5",bandit="b"} 0.0' in text
    assert 'route="/v1/bandits/{name}/arms/{arm}"' in text


OLD = ["small ", "e\u0301", "\u200b", "..", "a\x7f"]


async def test_arms_of_an_older_log_keep_their_names(tmp_path: Path) -> None:
    """The rule is younger than these names: they are read, chosen, changed and retired as before."""
    body = {**GREEDY, "arms": [{"name": name} for name in OLD]}
    async with opened() as service:
        await service.create(body={**body, "arms": [{"name": f"arm {i}"} for i in range(len(OLD))]})
        request = (await service.log())[0]["request"]
    request["arms"] = [arm | {"name": name} for arm, name in zip(request["arms"], OLD, strict=True)]
    first = created(name="b", request=request, arms=0, seed=7, timeout_s=86_400.0)
    first = type(first)(
        **{**{name: getattr(first, name) for name in first.__struct_fields__}, "arms": [NewArm(name=name) for name in OLD]}
    )
    storage = SqliteStorage(tmp_path / "bandits.db")
    await storage.start()
    await storage.create(Log("an id", "b"), events.encode(first))
    await storage.close()
    async with opened(store=f"sqlite:///{tmp_path}/bandits.db") as service:
        assert (await service.put("/v1/bandits/b", body)).status_code == 200
        for name in OLD:
            assert (await service.decide(body={"arms": [name]}))["arm"] == name
            if name != "..":
                path = f"/v1/bandits/b/arms/{quote(name, safe='')}"
                assert (await service.put(path, {"price": 2.0})).status_code == 200
                assert (await service.delete(path)).status_code == 204
        assert [arm["name"] for arm in (await service.bandit())["arms"]] == OLD
