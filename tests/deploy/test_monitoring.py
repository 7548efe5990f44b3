"""Rules and dashboard ask for what the service really exposes, and in a way that is right for several replicas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import DEPLOY, document
from tests.service.http_client import opened

RULES = [rule for group in document(DEPLOY / "prometheus-rules.yml")["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "nextarm.json").read_text())
TARGETS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
ASKED = [pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES] + [
    pytest.param(expression, id=f"{title} {number}") for number, (title, expression) in enumerate(TARGETS)
]
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$bandit": ".*"}

OF_THE_LOG = re.compile(
    r"nextarm_(decisions_total|outcomes_total|reward_count|reward_sum|cost_total|errors_total|cooling|pending|offset|drift_alarms_total|budget_\w+|prompt_trust)"
)
"""Equal on every replica."""


def plain(expression: str) -> str:
    """As Grafana sends it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


async def exposed() -> dict[str, set[str]]:
    """Every series of a service that has worked, with its labels; those that Prometheus adds are on top."""
    async with opened() as service:
        await service.create()
        made = await service.decide()
        await service.observe(made["id"])
        await service.ask("GET", "/v1/bandits/missing")
        await service.create("texts", {"policy": {"kind": "pak-ucb"}, "arms": [{"name": "a"}], "prompt": {"embedder": "static"}})
        await service.decide("texts", {"prompt": "good morning"})
        arms, budget = [{"name": "a"}, {"name": "b"}], {"signal": "cost", "per_decision": 0.5}
        await service.create("held", {"arms": arms, "prompt": {"dim": 2}, "budget": budget, "seed": 7})
        for number in range(24):
            made = await service.decide("held", {"prompt": {"vector": [1.0 - number % 5, number % 3]}})
            await service.observe(made["id"], {"reward": 0.1 * (number % 7), "cost": 0.25}, name="held")
        families = list(text_string_to_metric_families((await service.get("/metrics")).text))
    found: dict[str, set[str]] = {"up": set()}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels | {"job", "instance"} for name, labels in found.items()}


def selectors(node: Any) -> Iterator[Any]:
    """Every selector of series in an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr | promql_parser.UnaryExpr):
        yield from selectors(node.expr)


async def test_rules_and_dashboard_name_only_what_the_service_exposes() -> None:
    known = await exposed()
    for parameter in ASKED:
        (expression,) = parameter.values
        found = list(selectors(promql_parser.parse(plain(str(expression)))))
        assert found, expression
        for selector in found:
            assert selector.name in known, f"{selector.name}: {expression}"
            assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name], expression
        grouped = {label for labels in re.findall(r"by \(([\w, ]+)\)", str(expression)) for label in labels.split(", ")}
        assert grouped <= {label for selector in found for label in known[selector.name]} | {"le"}, expression


@pytest.mark.parametrize("expression", ASKED)
def test_what_every_replica_reports_alike_is_never_added_up_over_replicas(expression: str) -> None:
    """Taken by `max` (or, to see whether they differ, `min`) before anything is summed: the innermost aggregation around it."""
    for match in OF_THE_LOG.finditer(expression):
        before = expression[: match.start()]
        around = re.findall(r"(\w+)(?: by \([\w, ]+\))? ?\(", _open(before))
        aggregations = [word for word in around if word in ("sum", "max", "min", "avg", "count")]
        assert aggregations[-1] in ("max", "min"), expression


def _open(text: str) -> str:
    """A text without its closed brackets and what stands in them (except for the labels of `by`)."""
    while True:
        shorter = re.sub(r"(?<!by )\([^()]*(?:by \([^()]*\)[^()]*)*\)", "", text)
        if shorter == text:
            return text
        text = shorter


def test_the_check_of_sums_sees_a_mistake() -> None:
    right = "sum by (arm) (max by (bandit, arm) (rate(nextarm_decisions_total[1m])))"
    test_what_every_replica_reports_alike_is_never_added_up_over_replicas(right)
    for wrong in (right.replace("max", "sum"), "max(up) + sum(nextarm_pending)"):
        with pytest.raises(AssertionError):
            test_what_every_replica_reports_alike_is_never_added_up_over_replicas(wrong)


def test_the_dashboard_shows_what_is_promised() -> None:
    asked = " ".join(expression for _, expression in TARGETS)
    for name in (
        "sum(rate(nextarm_requests_total",
        "histogram_quantile(0.5,",
        "histogram_quantile(0.99,",
        "nextarm_decisions_total",
        "nextarm_reward_sum",
        "nextarm_reward_count",
        "nextarm_pending",
        "nextarm_duplicates_total",
        "nextarm_fold_lag",
        "nextarm_drift_alarms_total",
        "nextarm_errors_total",
        "nextarm_cooling",
        "nextarm_budget_running",
        "nextarm_prompt_trust",
        "sum by (code) (rate(nextarm_problems_total",
    ):
        assert name in asked, name
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = {(x, y) for panel in DASHBOARD["panels"] for x, y in _cells(panel["gridPos"])}
    assert len(taken) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in DASHBOARD["panels"]), "panels overlap"
    assert all(panel["description"] for panel in DASHBOARD["panels"])


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    assert at["x"] + at["w"] <= 24
    for x in range(at["x"], at["x"] + at["w"]):
        for y in range(at["y"], at["y"] + at["h"]):
            yield x, y


def test_grafana_finds_the_dashboard_and_its_source() -> None:
    (source,) = document(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    named = {json.dumps(part["datasource"]) for panel in DASHBOARD["panels"] for part in (panel, *panel["targets"])}
    assert named == {json.dumps({"type": source["type"], "uid": source["uid"]})}
    services = document(DEPLOY.parent / "docker-compose.yml")["services"]
    (provider,) = document(DEPLOY / "grafana" / "provisioning" / "dashboards" / "nextarm.yml")["providers"]
    mounted = {mount.split(":")[1] for mount in services["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert port in services[host]["ports"][0].split(":")[-1]


def test_prometheus_finds_every_replica_and_shows_its_key() -> None:
    config = document(DEPLOY / "prometheus.yml")
    (job,) = config["scrape_configs"]
    services = document(DEPLOY.parent / "docker-compose.yml")["services"]
    (lookup,) = job["dns_sd_configs"]
    assert lookup["type"] == "A", "one address per replica"
    assert set(lookup["names"]) <= set(services)
    assert set(services["prometheus"]["networks"]) & set(services["nextarm"]["networks"])
    assert job["authorization"]["credentials_file"] in services["prometheus"]["entrypoint"][-1]
    mounted = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= mounted
    assert job["job_name"] == "nextarm", "the alerts ask for it"


def test_every_alert_says_what_is_wrong_and_how_urgent_it_is() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


# -- what Prometheus itself says -----------------------------------------------------------------------------------------------

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool on this machine (apt-get install prometheus)")


def promtool(*words: str) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_reads_the_rules_and_its_configuration() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(DEPLOY / "prometheus-rules.yml"))
    promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml"))


@needs_promtool
def test_an_arm_that_cools_down_most_of_the_time_rings(tmp_path: Path) -> None:
    """Errors, 30 s of cooldown, a call that fails again: one scrape in four finds the arm in use."""
    series = [
        {"series": 'nextarm_cooling{bandit="b",arm="broken",instance="one"}', "values": "1 1 1 0 " * 30},
        {"series": 'nextarm_cooling{bandit="b",arm="broken",instance="two"}', "values": "1 1 1 0 " * 30},
        {"series": 'nextarm_cooling{bandit="b",arm="well",instance="one"}', "values": "0 0 0 1 " * 30},
    ]
    (rule,) = [rule for rule in RULES if rule["alert"] == "NextarmArmFails"]
    summary = rule["annotations"]["summary"].replace("{{ $labels.arm }}", "broken").replace("{{ $labels.bandit }}", "b")
    rings = {
        "exp_labels": {"severity": "ticket", "bandit": "b", "arm": "broken"},
        "exp_annotations": {"summary": summary},
    }
    asked = [{"eval_time": "25m", "alertname": "NextarmArmFails", "exp_alerts": [rings]}]
    tests = [{"interval": "15s", "input_series": series, "alert_rule_test": asked}]
    file = tmp_path / "rules.test.yml"
    file.write_text(json.dumps({"rule_files": [str(DEPLOY / "prometheus-rules.yml")], "tests": tests}))
    promtool("test", "rules", str(file))
