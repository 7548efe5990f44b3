"""URLs of Redis, and the settings that open a store there."""

from __future__ import annotations

import re
import sys

import pytest

from service import install_hint
from service.settings import InvalidSettings, Settings
from service.storage.redis.address import parse
from service.storage.redis.store import RedisStorage


@pytest.mark.parametrize(
    ("url", "kind", "endpoints", "rest"),
    [
        ("redis://", "single", (("localhost", 6379),), {}),
        ("redis://cache:7000/3", "single", (("cache", 7000),), {"db": 3}),
        ("redis://u%40x:p%3Aw@[::1]:7000", "single", (("::1", 7000),), {"username": "u@x", "password": "p:w"}),
        ("redis://:p@h", "single", (("h", 6379),), {"username": None, "password": "p"}),
        (
            "rediss://h?ssl_check_hostname=false",
            "single",
            (("h", 6379),),
            {"tls": True, "options": {"ssl_check_hostname": False}},
        ),
        ("unix:///run/redis.sock?db=2", "unix", (), {"path": "/run/redis.sock", "db": 2}),
        ("unix://:p@/run/redis.sock", "unix", (), {"path": "/run/redis.sock", "password": "p"}),
        ("redis+sentinel://a,b:7/main/1", "sentinel", (("a", 26379), ("b", 7)), {"service": "main", "db": 1}),
        ("rediss+cluster://:p@a:1,b", "cluster", (("a", 1), ("b", 6379)), {"tls": True, "password": "p"}),
    ],
)
def test_a_url_in_parts(url: str, kind: str, endpoints: tuple[tuple[str, int], ...], rest: dict[str, object]) -> None:
    address = parse(url)
    assert (address.kind, address.endpoints) == (kind, endpoints)
    assert {name: getattr(address, name) for name in rest} == rest


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@h/one",
        "redis://:s3cret@h:port",
        "redis://:s3cret@h?password=s3cret",
        "redis://:s3cret@h?ssl_ca_certs=/ca.pem",
        "rediss://:s3cret@h?ssl_ca_cert=/ca.pem",
        "redis+sentinel://:s3cret@h",
        "redis+cluster://:s3cret@h/1",
        "redis+clutser://:s3cret@h",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSettings, match="NEXTARM_STORE") as refused:
        Settings(store=url).open_storage()
    assert "s3cret" not in str(refused.value)


def test_a_password_of_its_own_setting_is_taken_where_the_url_has_none() -> None:
    assert parse("redis://h", password="other").password == "other"
    assert parse("redis://:own@h", password="other").password == "own"
    assert parse("redis+sentinel://h/s", sentinel_password="theirs").sentinel_password == "theirs"


def test_no_password_is_shown() -> None:
    settings = Settings(store="redis://:s3cret@h", redis_password="s3cret", redis_sentinel_password="s3cret")
    address = parse(settings.store, password="s3cret", sentinel_password="s3cret")
    assert "s3cret" not in repr(settings) + str(settings) + repr(address) + str(address)
    assert address.redacted("ERR unknown command 'AUTH', with args beginning with: 's3cret'").endswith("'***'")


def test_the_store_is_chosen_by_its_url() -> None:
    for url in ("redis://h", "rediss://h", "unix:///s", "redis+sentinel://h/s", "redis+cluster://h"):
        assert isinstance(Settings(store=url).open_storage(), RedisStorage)
    with pytest.raises(InvalidSettings, match="no SQLite store"):
        Settings(store="redis://h").sqlite_path()


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "é"])
def test_a_prefix_has_no_braces(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTARM_REDIS_PREFIX", prefix)
    with pytest.raises(InvalidSettings, match="NEXTARM_REDIS_PREFIX"):
        Settings.load()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name == "redis" or name.startswith(("redis.", "service.storage.redis"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InvalidSettings, match=re.escape(install_hint("redis"))):
        Settings(store="redis://h").open_storage()
