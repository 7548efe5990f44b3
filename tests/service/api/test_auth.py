"""Who may do what: roles, tenants, hashed keys, the rate limit, and no open server beyond this machine."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from service.api.auth import Authenticator, parse_keys
from service.cli.serve import check_exposure, is_loopback
from service.settings import InvalidSettings, Settings
from tests.service.http_client import GREEDY, JSON, Service, answered, connected, failed, opened, paths

KEYS = {
    "admin": "admin-key-1",
    "router": "router-key-2",
    "reader": "reader-key-3",
    "north": "north-key-4",
    "north-reader": "north-key-5",
}
SETTING = (
    f"{KEYS['admin']},router:{KEYS['router']},"
    f"reader:sha256={hashlib.sha256(KEYS['reader'].encode()).hexdigest()},"
    f" admin@north:{KEYS['north']} , reader@north:{KEYS['north-reader']}"
)

Caller = Callable[[str], Service]


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Key -> a client that sends it."""
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(opened(api_keys=SETTING))
        app = nobody.client._transport.app  # type: ignore[attr-defined]
        clients = {key: await stack.enter_async_context(connected(app, key=key)) for key in (*KEYS.values(), "wrong", "")}
        yield lambda name: clients[KEYS.get(name, name)]


ROUTES: list[tuple[str, str, Any, str]] = [
    ("GET", "/v1/policies", None, "reader"),
    ("GET", "/v1/bandits", None, "reader"),
    ("GET", "/v1/bandits/b", None, "reader"),
    ("GET", "/v1/bandits/b/log", None, "reader"),
    ("GET", "/v1/bandits/b/digest", None, "reader"),
    ("GET", "/v1/bandits/b/decisions", None, "reader"),
    ("GET", "/v1/bandits/b/series", None, "reader"),
    ("GET", "/v1/bandits/b/decisions/open", None, "reader"),
    ("POST", "/v1/bandits/b/decisions", {}, "router"),
    ("POST", "/v1/bandits/b/decisions/batch", {"decisions": [{}]}, "router"),
    ("PUT", "/v1/bandits/b/decisions/open/outcome", {"reward": 0.5}, "router"),
    ("POST", "/v1/bandits/b/outcomes/batch", {"outcomes": [{"decision": "open", "reward": 0.5}]}, "router"),
    ("POST", "/v1/bandits/b/references", {"outputs": ["a"]}, "router"),
    ("DELETE", "/v1/bandits/b/decisions/gone", None, "router"),
    ("PUT", "/v1/bandits/b/arms/new", {}, "admin"),
    ("DELETE", "/v1/bandits/b/arms/new", None, "admin"),
    ("PUT", "/v1/bandits/new", GREEDY, "admin"),
    ("POST", "/v1/bandits/b/import", {"rows": [{"id": "r", "arm": "small", "reward": 0.5}]}, "admin"),
    ("POST", "/v1/bandits/b/clone", {"name": "copy", "policy": {"kind": "greedy"}}, "admin"),
    ("PUT", "/v1/bandits/b/shadows/s", {"policy": {"kind": "random"}}, "admin"),
    ("GET", "/v1/bandits/b/shadows", None, "reader"),
    ("GET", "/v1/bandits/b/shadows/s", None, "reader"),
    ("POST", "/v1/bandits/b/shadows/s/promote", {"id": "p", "shadow_offset": 1}, "admin"),
    ("DELETE", "/v1/bandits/b/shadows/s", None, "admin"),
    ("POST", "/v1/bandits/b/evaluations", {"id": "e"}, "admin"),
    ("GET", "/v1/bandits/b/evaluations", None, "reader"),
    ("GET", "/v1/bandits/b/evaluations/e", None, "reader"),
    ("DELETE", "/v1/bandits/b/evaluations/e", None, "admin"),
    ("DELETE", "/v1/bandits/b", None, "admin"),
]
RANK = {"reader": 0, "router": 1, "admin": 2}


async def test_a_role_may_do_what_it_is_for_and_no_more(caller: Caller) -> None:
    await caller("admin").create()
    await caller("admin").decide(body={"id": "open"})
    for method, path, body, needs in ROUTES:
        for role in ("reader", "router", "admin"):
            response = await caller(role).ask(method, path, json=body)
            if RANK[role] < RANK[needs]:
                assert failed(response) == (403, "forbidden"), (method, path, role)
            else:
                assert response.status_code not in (401, 403), (method, path, role)


async def test_no_request_comes_in_without_a_key(caller: Caller) -> None:
    await caller("admin").create()
    for method, path, body, _ in [*ROUTES, ("GET", "/v1/nothing", None, ""), ("PATCH", "/v1/bandits", None, "")]:
        for key in ("", "wrong"):
            response = await caller(key).ask(method, path, json=body)
            assert failed(response) == (401, "unauthenticated"), (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
    assert (await caller("admin").bandit())["offset"] == 1


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEYS['admin']}",
        KEYS["admin"],
        f"Bearer {KEYS['admin']}x",
        f"Bearer {KEYS['admin'][:-1]}",
        f"Bearer {KEYS['admin'].upper()}",
        f"Bearer sha256={hashlib.sha256(KEYS['reader'].encode()).hexdigest()}",
        f"Bearer {hashlib.sha256(KEYS['reader'].encode()).hexdigest()}",
        f"Bearer router:{KEYS['router']}",
    ],
)
async def test_a_key_is_sent_as_it_is_as_a_bearer(caller: Caller, header: str) -> None:
    response = await caller("").ask("GET", "/v1/bandits", headers={"authorization": header})
    assert failed(response) == (401, "unauthenticated")
    response = await caller("").ask("GET", "/v1/bandits", headers={"authorization": f"bearer  {KEYS['reader']}"})
    assert response.status_code == 200


async def test_a_stranger_is_turned_away_before_the_body_is_read(caller: Caller) -> None:
    async def endless() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    response = await caller("wrong").ask("PUT", "/v1/bandits/b", content=endless(), headers=JSON)
    assert failed(response) == (401, "unauthenticated")
    response = await caller("wrong").ask("PUT", "/v1/bandits/b", content=b"{nonsense", headers=JSON)
    assert failed(response) == (401, "unauthenticated")


async def test_tenants_do_not_see_each_other(caller: Caller) -> None:
    await caller("admin").create("b")
    await caller("admin").decide(body={"id": "open"})
    before = await caller("admin").bandit()
    for method, path, body, _ in ROUTES:
        if path in ("/v1/policies", "/v1/bandits", "/v1/bandits/new"):
            continue
        response = await caller("north").ask(method, path, json=body)
        assert failed(response) == (404, "bandit_not_found"), (method, path)
    assert answered(await caller("north").get("/v1/bandits"))["bandits"] == []
    assert await caller("admin").bandit() == before
    await caller("north").create("b", {**GREEDY, "seed": 8})
    assert (await caller("north-reader").bandit())["seed"] == 8
    assert failed(await caller("north-reader").delete("/v1/bandits/b")) == (403, "forbidden")
    assert failed(await caller("admin").get("/v1/bandits/north%2Fb")) == (404, "not_found")


async def test_an_admin_without_a_tenant_reaches_the_bandits_of_a_tenant_by_naming_it(caller: Caller) -> None:
    await caller("north").create("b", {**GREEDY, "seed": 8})
    await caller("admin").create("b")
    north = {"x-nextarm-tenant": "north"}

    async def ask(key: str, method: str, path: str, body: Any = None, headers: dict[str, str] = north) -> httpx.Response:
        return await caller(key).ask(method, path, json=body, headers=headers)

    assert (await ask("admin", "GET", "/v1/bandits/b")).json()["seed"] == 8
    decided = (await ask("admin", "POST", "/v1/bandits/b/decisions", {"id": "of-north"})).json()
    assert (await ask("admin", "PUT", "/v1/bandits/b/decisions/of-north/outcome", {"reward": 0.5})).status_code == 200
    assert (await ask("admin", "GET", "/v1/bandits")).json()["bandits"][0]["name"] == "b"
    assert 'bandit="b"' in (await ask("admin", "GET", "/metrics")).text
    assert (await caller("north").bandit())["offset"] == decided["offset"] + 1 == 3
    assert (await caller("admin").bandit())["offset"] == 1  # the one of this name without a tenant
    assert failed(await ask("admin", "GET", "/v1/bandits/b", headers={"x-nextarm-tenant": "south"})) == (404, "bandit_not_found")
    assert (await ask("admin", "DELETE", "/v1/bandits/b")).status_code == 204
    assert failed(await caller("north").get("/v1/bandits/b")) == (404, "bandit_not_found")
    assert (await caller("admin").bandit())["offset"] == 1


async def test_no_other_key_goes_to_a_tenant_by_naming_it(caller: Caller) -> None:
    await caller("north").create()
    for key, tenant in (("reader", "north"), ("router", "north"), ("north", "south"), ("north-reader", "south")):
        for method, path, body, _ in [*ROUTES, ("GET", "/metrics", None, "reader")]:
            response = await caller(key).ask(method, path, json=body, headers={"x-nextarm-tenant": tenant})
            assert failed(response) == (403, "forbidden"), (key, method, path)
    for key in ("", "wrong"):
        response = await caller(key).ask("GET", "/v1/bandits/b", headers={"x-nextarm-tenant": "north"})
        assert failed(response) == (401, "unauthenticated")
    assert (await caller("north").ask("GET", "/v1/bandits/b", headers={"x-nextarm-tenant": "north"})).status_code == 200
    for tenant in ("North", "north/b", "a b", "-", "x" * 64):
        response = await caller("admin").ask("GET", "/v1/bandits/b", headers={"x-nextarm-tenant": tenant})
        assert (failed(response), paths(response)) == ((422, "invalid_request"), ["X-Nextarm-Tenant"])


async def test_without_keys_every_caller_is_the_operator(service: Service) -> None:
    await service.ask("PUT", "/v1/bandits/b", json=GREEDY, headers={"x-nextarm-tenant": "north"})
    assert failed(await service.get("/v1/bandits/b")) == (404, "bandit_not_found")
    assert (await service.ask("GET", "/v1/bandits/b", headers={"x-nextarm-tenant": "north"})).status_code == 200


async def test_no_answer_and_no_setting_repeats_a_key(caller: Caller) -> None:
    for name, key in KEYS.items():
        for method, path, body, _ in ROUTES:
            response = await caller(name).ask(method, path, json=body)
            assert key not in response.text + str(response.headers)
    settings = Settings(api_keys=SETTING)
    gate = Authenticator(keys=SETTING, rate_limit=0.0)
    shown = repr(settings) + str(settings) + repr(vars(gate)) + repr(parse_keys(SETTING))
    assert not any(key in shown for key in KEYS.values())


@pytest.mark.parametrize(
    "keys",
    [
        "writer:s3cr3t",
        "admin@:s3cr3t",
        "admin@North:s3cr3t",
        "reader:",
        "s3c r3t",
        "reader:sha256=12",
        "sha256=" + "s3cr3t" * 10,
        "first,admin:s3cr3t:x",
    ],
)
def test_a_key_that_is_misspelt_stops_the_start_and_is_not_shown(keys: str) -> None:
    with pytest.raises(InvalidSettings, match=r"NEXTARM_API_KEYS: key [12] ") as failure:
        parse_keys(keys)
    assert "s3c" not in str(failure.value)


# -- the rate limit ------------------------------------------------------------------------------------------------------------


async def test_over_the_rate_is_asked_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("service.api.auth.time.monotonic", lambda: now)
    async with opened(rate_limit=4.0) as service:
        await service.create()
        for _ in range(3):
            assert (await service.get("/v1/bandits/b")).status_code == 200
        response = await service.post("/v1/bandits/b/decisions", {})
        assert failed(response) == (429, "rate_limited")
        assert response.headers["retry-after"] == "1"
        for path in ("/healthz", "/readyz"):
            assert (await service.get(path)).status_code == 200
        now += 0.25  # one more token
        assert (await service.get("/v1/bandits/b")).json()["offset"] == 1
        assert failed(await service.get("/v1/bandits/b")) == (429, "rate_limited")
        now += 3600.0  # tokens are kept for one second, no more
        answers = await asyncio.gather(*(service.get("/v1/bandits/b") for _ in range(9)))
        assert [response.status_code for response in answers] == [200] * 4 + [429] * 5


async def test_a_slow_rate_says_how_long() -> None:
    async with opened(rate_limit=0.01) as service:
        await service.get("/v1/bandits")
        response = await service.get("/v1/bandits")
        assert failed(response) == (429, "rate_limited")
        assert 90 <= int(response.headers["retry-after"]) <= 101


async def test_every_key_and_every_address_has_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.auth.time.monotonic", lambda: 1000.0)
    async with opened(rate_limit=2.0, api_keys="one,reader:two") as nobody:
        app = nobody.client._transport.app  # type: ignore[attr-defined]
        async with (
            connected(app, key="one") as one,
            connected(app, key="two") as two,
            connected(app, key="one", address="10.0.0.9") as elsewhere,
            connected(app, key="guess", address="10.0.0.9") as stranger,
        ):
            assert [(await one.get("/v1/bandits")).status_code for _ in range(3)] == [200, 200, 429]
            assert (await elsewhere.get("/v1/bandits")).status_code == 429  # the same key
            assert (await two.get("/v1/bandits")).status_code == 200
            assert [(await stranger.get("/v1/bandits")).status_code for _ in range(3)] == [401, 401, 429]  # who guesses, waits
    async with opened(rate_limit=1.0) as here:
        app = here.client._transport.app  # type: ignore[attr-defined]
        async with connected(app, address="10.0.0.9") as there:
            assert [(await here.get("/v1/bandits")).status_code for _ in range(2)] == [200, 429]
            assert (await there.get("/v1/bandits")).status_code == 200


# -- the address ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.9", "example.org", "", "127.0.0.1.example.org", "0", "::ffff:0:0"])
def test_other_machines_need_a_key_or_a_word_from_the_operator(host: str) -> None:
    with pytest.raises(InvalidSettings, match="NEXTARM_API_KEYS"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, allow_anonymous=True))
    check_exposure(Settings(host=host, api_keys="reader:one"))
    with pytest.raises(InvalidSettings):
        check_exposure(Settings(host=host, api_keys=" , "))
