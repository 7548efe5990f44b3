"""The compose files are valid by the specification's schema, and every service keeps what is promised of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from check_jsonschema import main as check_jsonschema  # type: ignore[import-untyped]  # it ships no types
from click.testing import CliRunner

from service.api.auth import parse_keys
from service.cli.serve import GRACE_S, check_exposure
from service.settings import Settings
from tests.deploy.files import DEPLOY, ROOT, SETTINGS, document, interpolated, seconds, size

MANY, SINGLE = ROOT / "docker-compose.yml", ROOT / "docker-compose.single.yml"
GIVEN = {"NEXTARM_REDIS_PASSWORD": "secret"}
EVERY_FILE = pytest.mark.parametrize("path", [MANY, SINGLE], ids=lambda path: path.name)


def services(path: Path, environment: dict[str, str] = GIVEN) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = interpolated(document(path), environment)["services"]
    return found


EVERY_SERVICE = pytest.mark.parametrize(
    "service",
    [pytest.param(found, id=f"{path.name}:{name}") for path in (MANY, SINGLE) for name, found in services(path).items()],
)


@EVERY_FILE
def test_a_file_is_valid_by_the_specification(path: Path) -> None:
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(path)])
    assert result.exit_code == 0, result.output


def test_the_specification_sees_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(MANY.read_text().replace("read_only: true", "readonly: true", 1))
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(wrong)])
    assert result.exit_code == 1


# -- every service ------------------------------------------------------------------------------------------------------------


@EVERY_SERVICE
def test_a_service_cannot_write_gain_rights_or_take_more_than_its_share(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert size(limits["memory"]) >= size("256M")
    assert service["logging"]["options"]["max-size"], "logs do not fill the disk"


@EVERY_SERVICE
def test_a_service_says_how_it_is_and_has_time_to_end(service: dict[str, Any]) -> None:
    check = service["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    assert {"retries", "start_period"} <= set(check)
    assert service["restart"] == "unless-stopped"
    assert seconds(service["stop_grace_period"]) >= 30


@EVERY_SERVICE
def test_a_service_is_of_a_pinned_image_and_not_root(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?", service["image"])
    if "build" not in service:  # the Dockerfile's own user otherwise
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])


@EVERY_SERVICE
def test_ports_are_published_on_this_machine_only(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@EVERY_SERVICE
def test_what_is_mounted_from_the_repository_exists_and_cannot_be_written(service: dict[str, Any]) -> None:
    for mount in service.get("volumes", []):
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert rest.endswith(":ro")


@EVERY_FILE
def test_every_volume_and_network_is_declared_and_used(path: Path) -> None:
    whole = document(path)
    mounted = {volume.partition(":")[0] for service in whole["services"].values() for volume in service.get("volumes", [])}
    assert {source for source in mounted if not source.startswith(".")} == set(whole["volumes"])
    joined = {network for service in whole["services"].values() for network in service.get("networks", [])}
    assert joined == set(whole.get("networks", {}))


# -- the service itself -------------------------------------------------------------------------------------------------------


@EVERY_FILE
def test_every_setting_exists_and_the_service_starts_with_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {name: str(value) for name, value in services(path)["nextarm"]["environment"].items()}
    named = {name for name in variables if name.startswith("NEXTARM_")}
    assert named <= SETTINGS, named - SETTINGS
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load(host="0.0.0.0")
    check_exposure(settings)
    settings.open_storage()


@EVERY_FILE
def test_keys_close_what_stands_open(path: Path) -> None:
    closed = services(path, GIVEN | {"NEXTARM_API_KEYS": "admin:k1,reader:k2", "NEXTARM_ALLOW_ANONYMOUS": "0"})
    variables = closed["nextarm"]["environment"]
    assert [key.caller.role for key in parse_keys(variables["NEXTARM_API_KEYS"])] == ["admin", "reader"]
    assert variables["NEXTARM_ALLOW_ANONYMOUS"] == "0"


@EVERY_FILE
def test_the_service_may_end_its_requests_and_a_bandit_fits_into_its_memory(path: Path) -> None:
    service = services(path)["nextarm"]
    assert seconds(service["stop_grace_period"]) >= GRACE_S + 15
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    largest = int(service["environment"]["NEXTARM_MAX_STATE_BYTES"])
    limit = size(service["deploy"]["resources"]["limits"]["memory"])
    assert largest <= limit / 2
    assert largest <= int(service["environment"]["NEXTARM_MEMORY_BYTES"]) == int(0.6 * limit)


# -- many replicas ------------------------------------------------------------------------------------------------------------


def test_there_are_as_many_replicas_as_are_asked_for() -> None:
    assert services(MANY)["nextarm"]["deploy"]["replicas"] == "3"
    assert services(MANY, GIVEN | {"NEXTARM_REPLICAS": "7"})["nextarm"]["deploy"]["replicas"] == "7"
    assert "ports" not in services(MANY)["nextarm"], "a published port could be had by one replica alone"
    assert "container_name" not in services(MANY)["nextarm"]
    assert not services(MANY)["nextarm"].get("volumes"), "nothing is stored in a replica"


def test_redis_keeps_the_log_and_no_other_network_reaches_it() -> None:
    redis = services(MANY)["redis"]
    assert "ports" not in redis
    whole = document(MANY)
    assert whole["networks"]["store"] == {"internal": True}
    assert redis["networks"] == ["store"]
    assert [name for name, service in services(MANY).items() if "store" in service["networks"]] == ["redis", "nextarm"]
    assert any(mount.endswith(":/data") for mount in redis["volumes"])
    with pytest.raises(KeyError, match="NEXTARM_REDIS_PASSWORD"):
        services(MANY, {})
    assert size(redis["environment"]["REDIS_MAXMEMORY"]) * 2 <= size(redis["deploy"]["resources"]["limits"]["memory"])


def test_redis_is_configured_as_the_log_needs_it() -> None:
    lines = [shlex.split(line, comments=True) for line in (DEPLOY / "redis.conf").read_text().splitlines()]
    config = {line[0]: line[1:] for line in lines if line}
    assert len(config) == sum(bool(line) for line in lines), "a directive stands twice"
    assert config["appendonly"] == ["yes"]
    assert config["appendfsync"] == ["everysec"]
    assert config["maxmemory-policy"] == ["noeviction"]
    assert "requirepass" not in config
    assert services(MANY)["nextarm"]["environment"]["NEXTARM_DURABILITY"] == "process", "what everysec keeps"


def test_the_load_balancer_waits_for_replicas_and_monitoring_is_optional() -> None:
    found = services(MANY)
    assert found["nginx"]["depends_on"] == {"nextarm": {"condition": "service_healthy"}}
    assert found["nextarm"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert {name for name, service in found.items() if "profiles" in service} == {"prometheus", "grafana"}
    assert all(service.get("profiles", ["monitoring"]) == ["monitoring"] for service in found.values())
    assert [name for name, service in found.items() if service.get("ports")] == ["nginx", "prometheus", "grafana"]
