"""A server without keys is used by this machine alone, and not by web pages that take its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.http_client import GREEDY, Service, failed, opened

LOOPBACK = [
    "localhost",
    "localhost:8000",
    "LocalHost.:8000",
    "nextarm.localhost:8000",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.8.9.10:1",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:8000",
    "[::ffff:127.0.0.1]:8000",
]
STRANGE = [
    "attacker.example",
    "attacker.example:8000",
    "localhost.attacker.example:8000",
    "127.0.0.1.attacker.example",
    "localhost@attacker.example",
    "notlocalhost",
    "localhost:8000:8000",
    "localhost/",
    "[::1",
    "::1",
    "[localhost]",
    "[2001:db8::1]:8000",
    "0.0.0.0:8000",
    "192.168.1.20:8000",
    "service",
    "",
    "x" * 5_000,
]


async def asked(service: Service, host: str, method: str = "GET", path: str = "/v1/bandits") -> tuple[int, str]:
    response = await service.ask(method, path, headers={"host": host}, json=GREEDY if method == "PUT" else None)
    return failed(response) if response.status_code >= 400 else (response.status_code, "")


@pytest.mark.parametrize("host", LOOPBACK)
async def test_loopback_is_addressed_by_any_of_its_names(service: Service, host: str) -> None:
    assert await asked(service, host) == (200, "")


@pytest.mark.parametrize("host", STRANGE)
async def test_a_page_whose_name_was_rebound_to_this_machine_reaches_nothing(service: Service, host: str) -> None:
    for method, path in (("GET", "/v1/bandits"), ("PUT", "/v1/bandits/b"), ("GET", "/healthz"), ("GET", "/docs")):
        assert await asked(service, host, method, path) == (421, "host_not_allowed")
    assert (await service.get("/v1/bandits")).json()["bandits"] == []


async def test_the_refusal_names_the_setting() -> None:
    async with opened() as service:
        response = await service.ask("GET", "/v1/bandits", headers={"host": "box.lan"})
        assert "NEXTARM_ALLOWED_HOSTS" in response.json()["detail"]
        assert "box.lan" not in response.text


async def test_one_host_among_two_is_not_enough(service: Service) -> None:
    response = await service.ask("GET", "/v1/bandits", headers=[("host", "localhost"), ("host", "attacker.example")])
    assert failed(response) == (421, "host_not_allowed")


async def test_further_names_are_a_setting() -> None:
    async with opened(allowed_hosts="box.lan, Other.example") as service:
        for host in ("box.lan:8000", "other.example", "localhost"):
            assert await asked(service, host) == (200, "")
        for host in ("example", "box.lan.attacker.example", "192.168.1.20"):
            assert await asked(service, host) == (421, "host_not_allowed")
    async with opened(allowed_hosts="*") as service:
        assert await asked(service, "attacker.example") == (200, "")


@pytest.mark.parametrize("settings", [{"api_keys": "secret-key"}, {"allow_anonymous": True}])
async def test_a_server_for_others_is_addressed_by_any_name_unless_names_are_given(
    settings: dict[str, Any],
) -> None:
    key = {"authorization": "Bearer secret-key"}
    for names, host, status in (
        ("", "nextarm.example", 200),
        ("nextarm.example", "nextarm.example:8443", 200),
        ("nextarm.example", "10.1.2.3:8000", 200),  # a probe: no name stands behind an address
        ("nextarm.example", "[2001:db8::1]:8000", 200),
        ("nextarm.example", "attacker.example", 421),
    ):
        async with opened(allowed_hosts=names, **settings) as service:
            response = await service.ask("GET", "/v1/bandits", headers={"host": host, **key})
            assert response.status_code == status, (names, host)
