"""What Prometheus finds."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.storage.base import Log
from service.storage.memory import MemoryStorage
from tests.service.http_client import GREEDY, Service, failed, opened, paths

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scraped(service: Service, **headers: str) -> Samples:
    response = await service.ask("GET", "/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


async def test_decisions_outcomes_and_rewards_are_counted_per_arm(service: Service) -> None:
    await service.create()
    for number, reward in enumerate((0.5, 0.25)):
        decision = await service.decide(body={"id": f"d{number}"})
        await service.observe(decision["id"], {"reward": reward, "cost": 2.0})
        await service.observe(decision["id"], {"reward": reward, "cost": 2.0})
    await service.decide(body={"id": "open"})
    found = await scraped(service)
    per_arm = {arm["name"]: arm for arm in (await service.bandit())["arms"]}
    for name, arm in per_arm.items():
        labels = {"bandit": "b", "arm": name}
        assert of(found, "nextarm_decisions_total", **labels) == arm["pulls"]
        assert of(found, "nextarm_outcomes_total", **labels) == arm["outcomes"] == 1
        assert of(found, "nextarm_cost_total", **labels) == 2.0
        assert of(found, "nextarm_pending", **labels) == arm["pending"]
    assert sum(of(found, "nextarm_reward_sum", bandit="b", arm=name) or 0.0 for name in per_arm) == 0.75
    assert of(found, "nextarm_duplicates_total", bandit="b") == 2
    assert of(found, "nextarm_offset", bandit="b") == await service.offset()
    assert of(found, "nextarm_fold_lag", bandit="b") == 0


async def test_a_mean_reward_can_be_read_off_the_metrics_where_not_every_outcome_carries_one(service: Service) -> None:
    bandit = {"policy": {"kind": "mixture-greedy", "kernel": "cosine"}, "arms": [{"name": "a"}], "output": {"dim": 2}, "seed": 7}
    await service.create(body=bandit)
    for number, reward in enumerate((1.0, None, 1.0, None)):
        decision = await service.decide(body={"id": f"d{number}"})
        await service.observe(decision["id"], {"output": {"vector": [1.0, float(number)]}, "reward": reward})
    found = await scraped(service)
    names = ("nextarm_outcomes_total", "nextarm_reward_count", "nextarm_reward_sum")
    assert [of(found, name, bandit="b", arm="a") for name in names] == [4, 2, 2.0]


# -- the rules of `promtool check metrics` -------------------------------------------------------------------------------------

OTHER_UNITS = re.compile(
    r"(^|_)(ms|us|ns|sec|kb|mb|gb|tb|(milli|micro|nano|kilo|mega|giga)(seconds?|bytes?|grams?|meters?)|minutes?|hours?|days?|weeks?"
    r"|bits?|percent(ages?)?|fahrenheit|kelvin)(_|$)"
)


def faults(text: str) -> list[str]:
    """What `promtool check metrics` says about names, types and help of an exposition."""
    types: dict[str, str] = {}
    helped: dict[str, str] = {}
    found: list[str] = []
    for line in text.splitlines():
        word, _, rest = line.partition("# ")[2].partition(" ")
        name, _, what = rest.partition(" ")
        if word in ("TYPE", "HELP"):
            known = types if word == "TYPE" else helped
            found += [f"{name}: a second {word}"] if name in known else []
            known[name] = what
    for name, kind in types.items():
        rules = {
            "no help": not helped.get(name),
            "a counter without _total": kind == "counter" and not name.endswith("_total"),
            "_total, and no counter": kind != "counter" and name.endswith("_total"),
            "_sum, _count or _bucket, and no histogram": kind not in ("histogram", "summary")
            and re.search(r"_(sum|count|bucket)$", name),
            "its type in its name": re.search(r"_(counter|gauge|histogram|summary)(_|$)", name),
            "camel case or a colon": not re.fullmatch(r"[a-z0-9_]+", name),
            "a unit that is no base unit": OTHER_UNITS.search(name),
            "an untyped metric": kind == "untyped",
        }
        found += [f"{name}: {rule}" for rule, broken in rules.items() if broken]
    for family in text_string_to_metric_families(text):
        reserved = {"le", "quantile"} if family.type not in ("histogram", "summary") else set()
        found += [f"{family.name}: a reserved label" for sample in family.samples if reserved & sample.labels.keys()]
        found += [f"{family.name}: no type" for _ in (1,) if family.type in ("unknown", "untyped")]
    return found


async def worked(service: Service) -> str:
    """The exposition of a service that has done everything that is counted."""
    await service.create()
    await service.observe((await service.decide())["id"], {"reward": -0.5})
    await service.get("/v1/bandits/nobody")
    await service.create("texts", {"policy": {"kind": "pak-ucb"}, "arms": [{"name": "a"}], "prompt": {"embedder": "static"}})
    await service.decide("texts", {"prompt": "good morning"})
    return (await service.get("/metrics")).text


async def test_the_exposition_keeps_the_rules_of_promtool(service: Service) -> None:
    text = await worked(service)
    assert faults(text) == []
    if promtool := shutil.which("promtool"):
        checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        "# HELP a_sum Help.\n# TYPE a_sum gauge\na_sum 1\n",
        "# HELP a Help.\n# TYPE a counter\na 1\n",
        "# HELP a_total Help.\n# TYPE a_total gauge\na_total 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP a_gauge Help.\n# TYPE a_gauge gauge\na_gauge 1\n",
        "# HELP aB Help.\n# TYPE aB gauge\naB 1\n",
        "# HELP a_milliseconds Help.\n# TYPE a_milliseconds gauge\na_milliseconds 1\n",
        '# HELP a Help.\n# TYPE a gauge\na{quantile="1"} 1\n',
    ],
)
def test_the_check_of_the_exposition_sees_a_mistake(wrong: str) -> None:
    assert faults(wrong)
    if promtool := shutil.which("promtool"):
        assert subprocess.run([promtool, "check", "metrics"], input=wrong, text=True, capture_output=True, check=False).returncode


async def test_the_version_can_be_read_off_the_metrics(service: Service) -> None:
    assert of(await scraped(service), "nextarm_build_info", version=version("nextarm")) == 1


async def test_requests_are_counted_by_route_and_problems_by_code(service: Service) -> None:
    await service.create()
    await service.decide()
    await service.get("/v1/bandits/nobody")
    await service.get("/v1/bandits/somebody")
    await service.post("/v1/bandits/b/decisions", {"nonsense": 1})
    await service.get("/nothing")
    found = await scraped(service)
    route = "/v1/bandits/{name}"
    assert of(found, "nextarm_requests_total", route=route, method="GET", status="404") == 2
    assert of(found, "nextarm_requests_total", route=f"{route}/decisions", method="POST", status="201") == 1
    assert of(found, "nextarm_requests_total", route="", method="GET", status="404") == 1
    assert of(found, "nextarm_problems_total", code="bandit_not_found") == 2
    assert of(found, "nextarm_problems_total", code="invalid_request") == 1
    assert of(found, "nextarm_request_seconds_count", route=f"{route}/decisions", method="POST") == 2
    assert (of(found, "process_resident_memory_bytes") or 0) > 1e6


async def test_a_tenant_sees_its_own_bandits_only_and_a_stranger_nothing(tmp_path: Path) -> None:
    async with opened(api_keys="admin:root,admin@blue:sky,reader@red:rose") as service:
        for key, name in (("root", "plain"), ("sky", "cloud")):
            response = await service.ask("PUT", f"/v1/bandits/{name}", json=GREEDY, headers={"authorization": f"Bearer {key}"})
            assert response.status_code == 201
        assert failed(await service.get("/metrics")) == (401, "unauthenticated")
        everything = await scraped(service, authorization="Bearer root")
        blue = await scraped(service, authorization="Bearer sky")
        red = await scraped(service, authorization="Bearer rose")
    offsets = {key[1] for key in everything if key[0] == "nextarm_offset"}
    assert offsets == {(("bandit", "plain"),), (("bandit", "blue/cloud"),)}
    assert {key[1] for key in blue if key[0] == "nextarm_offset"} == {(("bandit", "cloud"),)}
    assert not [key for key in red if dict(key[1]).get("bandit")]
    assert not [key for key in blue if key[0].startswith(("process_", "nextarm_requests"))]


@pytest.mark.parametrize("header", [False, True])
async def test_an_offset_that_is_in_no_receipt_is_refused(service: Service, header: bool) -> None:
    await service.create()
    decision = await service.decide()
    await service.observe(decision["id"])
    if header:
        asked = [await service.ask("GET", "/v1/bandits/b", headers={"x-nextarm-min-offset": n}) for n in ("3", "4")]
    else:
        asked = [await service.get(f"/v1/bandits/b/digest?min_offset={n}") for n in (3, 4)]
    assert asked[0].status_code == 200
    assert failed(asked[1]) == (422, "invalid_request")
    assert paths(asked[1]) == ["min_offset"]


async def test_an_offset_that_is_not_learned_in_time_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(min_offset_wait_s=0.05) as service:
        await service.create()

        async def three(storage: MemoryStorage, log: Log) -> int:
            return 3

        monkeypatch.setattr(MemoryStorage, "end", three)
        behind = await service.get("/v1/bandits/b/digest?min_offset=3")
        assert failed(behind) == (503, "replica_behind")
        assert behind.headers["retry-after"] == "1"
