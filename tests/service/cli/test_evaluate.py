"""`nextarm evaluate`: the answer for a log with support, the refusal for one without, and what it says of broken logs."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

from service import install_hint
from service.__main__ import main
from service.cli.dask_cluster import evaluate_plan
from service.engine import events
from service.engine.evaluation_process import EvaluationFailed
from service.storage.memory import MemoryStorage
from tests.bandits.examples import DIM, Example
from tests.service.drivers import ask, created, learner_of, outcome
from tests.service.servers import Server

MEANS = (0.2, 0.5, 0.8)


def reward(g: np.random.Generator, arm: int) -> float:
    """0 or 1."""
    return float(g.random() < MEANS[arm])


ALL = ("--estimator", "snips", "--estimator", "ips")
EPSILON = Example(kind="epsilon-greedy", settings={"epsilon": 0.6}, reward=reward)
PAK_DEFAULT = Example(kind="pak-ucb", dim=DIM, reward=reward)


async def exported(folder: Path, example: Example, *, rounds: int = 400) -> Path:
    """A log as `nextarm export` writes it. Every twentieth decision is overridden, every thirtieth stays open."""
    bandit, g = await learner_of(MemoryStorage(), example), np.random.default_rng(1)
    for i in range(rounds):
        kept = await bandit.decisions.submit(ask(example, g, f"d{i}"))
        if i % 30 == 29:
            continue
        arm = (kept.event.arm + 1) % 3 if i % 20 == 19 else None
        played = kept.event.arm if arm is None else arm
        await bandit.outcomes.submit(f"d{i}", outcome(example, g, played, arm=arm))
    path = folder / f"{example.kind}.ndjson"
    entries = await bandit.entries(after=0, limit=10_000)
    path.write_bytes(b"".join(events.line(offset, payload) for offset, payload in entries))
    return path


async def run(*words: object) -> tuple[int, str]:
    """Exit code and output. (In a thread: the command starts an event loop of its own.)"""
    result = await asyncio.to_thread(CliRunner().invoke, main, ["evaluate", "--quiet", *map(str, words)], catch_exceptions=False)
    return result.exit_code, result.output


async def evaluated(*words: object) -> dict[str, Any]:
    """The JSON, with all policies by name."""
    code, output = await run(*words, "--json")
    assert code == 0, output
    found: dict[str, Any] = json.loads(output)
    several = [found["behaviour"], *found["policies"], *found["fixed_arms"]]
    return {**found, "by_name": {policy["label"]: policy for policy in several}}


async def test_fixed_arms_and_learning_policies_are_evaluated_where_the_log_supports_them(tmp_path: Path) -> None:
    path = await exported(tmp_path, EPSILON, rounds=1_500)
    found = await evaluated(path, "--policy", "greedy", "--policy", '{"kind": "thompson"}', "--reward-range", 0, 1, *ALL)
    assert set(found["by_name"]) == {"as logged", "greedy", "thompson", "always arm 0", "always arm 1", "always arm 2"}
    for arm, mean in enumerate(MEANS):
        policy = found["by_name"][f"always arm {arm}"]
        assert policy["support"] == 1.0
        assert policy["anytime_interval"][0] <= mean <= policy["anytime_interval"][1]
        assert abs(policy["value"] - mean) < 4.0 * (policy["interval"][1] - policy["interval"][0]) / 3.92
    best, logged = found["by_name"]["always arm 2"], found["by_name"]["as logged"]
    assert best["verdict"] == logged["verdict"] == "answer"
    assert best["value"] > logged["value"]
    assert logged["value"] == pytest.approx(logged["estimates"]["ips"]["value"])
    assert abs(found["by_name"]["greedy"]["value"] - best["value"]) < 0.1, "it learns soon which arm is best"
    assert found["left_out"]["overridden"] == 1_500 // 20 - 1_500 // 60  # one in three of them stays open
    assert found["left_out"]["open"] == 1_500 // 30
    assert found["decisions"] == 1_500 - sum(found["left_out"].values())


async def test_a_log_without_support_does_not_answer(tmp_path: Path) -> None:
    path = await exported(tmp_path, PAK_DEFAULT)
    found = (await evaluated(path))["by_name"]
    assert found["as logged"]["verdict"] == "answer"
    assert found["always arm 0"]["verdict"] == "cannot_answer"
    assert "exploration_floor" in found["always arm 0"]["reason"]


async def test_earlier_decisions_are_learned_and_not_counted(tmp_path: Path) -> None:
    path = await exported(tmp_path, EPSILON)
    whole = await evaluated(path)
    assert (await evaluated(path, "--since", 400))["decisions"] < whole["decisions"]
    assert (await evaluated(path, "--since", "2026-01-01T00:00:00Z"))["decisions"] == whole["decisions"]
    assert await run(path, "--since", "2100-01-01T00:00:00Z") == (
        1,
        "nextarm: since: the log holds no decision with a reward that could be used (it holds none)\n",
    )
    assert "no time zone" in (await run(path, "--since", "2026-01-01T00:00:00"))[1]
    assert "neither an offset nor a time" in (await run(path, "--since", "yesterday"))[1]


async def test_the_table_names_every_policy(tmp_path: Path) -> None:
    code, output = await run(await exported(tmp_path, EPSILON), "--reward-range", 0, 1)
    assert code == 0
    for name in ("always", "logged", "verdict"):
        assert name in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "tompson"), "kind: must be one of"),
        (("--policy", '{"kind": "pak-ucb"}'), "decides by the prompt, and this log has none"),
        (("--policy", "fd-ucb"), "learns from outputs, and this log has none"),
        (("--policy", '{"kind": "greedy"'), "is no JSON object"),
        (("--policy", '{"epsilon": 1}'), 'has no "kind"'),
        (("--policy", '{"kind": "greedy", "epsilon": 1}'), "epsilon: is not a hyperparameter of greedy"),
        (("--reward-range", "0", "0.5"), "outside of reward_range"),
    ],
)
async def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    code, output = await run(await exported(tmp_path, EPSILON, rounds=60), *words)
    assert code == 1
    assert message in output
    assert output.count("\n") == 1


async def test_broken_logs_are_named_with_their_line(tmp_path: Path) -> None:
    path = await exported(tmp_path, EPSILON, rounds=20)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-5])
    assert "the line is torn" in (await run(path))[1]
    path.write_bytes(b"".join([*lines, events.line(99, events.encode(created(EPSILON)))]))
    assert "another bandit's log begins" in (await run(path))[1]
    path.write_bytes(b"".join(lines[1:]))
    assert "a log begins with the event that creates the bandit" in (await run(path))[1]
    path.write_bytes(b"".join([lines[0], b'{"event": "decided"}\n']))
    assert "entry 2" in (await run(path))[1]
    path.write_bytes(b"")
    assert "the log is empty" in (await run(path))[1]


async def test_a_bandit_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, output = await run("unknown", "--store", f"sqlite:///{tmp_path / 'none.db'}")
    assert code == 1
    assert output.startswith("nextarm: ")


def test_a_running_service_evaluates_and_is_drawn(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """By the service itself: what the same log says here."""
    server, name = start_server(), "router"
    path = f"/v1/bandits/{name}"
    body = {"policy": {"kind": "epsilon-greedy", "epsilon": 0.6}, "arms": [{"name": "x"}, {"name": "y"}], "seed": 3}
    with server.client() as client:
        assert client.put(path, json=body).status_code == 201
        asked = client.post(f"{path}/decisions/batch", json={"decisions": [{"id": f"d{i}"} for i in range(200)]}).json()
        outcomes = [{"decision": one["id"], "reward": i % 3 % 2} for i, one in enumerate(asked["decisions"])]
        assert client.post(f"{path}/outcomes/batch", json={"outcomes": outcomes}).is_success
        log = tmp_path / "log.ndjson"
        log.write_bytes(client.get(f"{path}/log").content)

    def done(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == code, result.output
        return result.output

    words = ("--quiet", "--json", "--policy", "greedy", "--policy", '{"kind": "thompson"}', "--reward-range", 0, 1, *ALL)
    there = json.loads(done("evaluate", name, "--url", server.url, *words))
    here = json.loads(done("evaluate", log, *words))
    assert there == here
    assert len(there["policies"]) == 2
    picture = tmp_path / "plot.png"
    table = done("evaluate", name, "--url", server.url, "--quiet", "--since", 2, "--plot", picture)
    assert "always x" in table
    assert picture.stat().st_size > 1_000
    done("plot", name, "--url", server.url, "--quiet", "-o", tmp_path / "bandit.png")
    assert (tmp_path / "bandit.png").stat().st_size > 1_000
    for wrong, message in (
        ((name, "--policy", "tompson"), "policies.0.kind: must be one of"),
        ((name, "--since", 10_000), "the log ends at offset"),
        (("other",), "other"),
        ((name, "--reward-range", 0, 0.5), "outside of reward_range"),
    ):
        assert message in done("evaluate", *wrong, "--url", server.url, "--quiet", code=1)
    assert "127.0.0.1:9" in done("evaluate", name, "--url", "http://127.0.0.1:9", "--quiet", code=1)


# -- on a cluster ---------------------------------------------------------------------------------------------------------------


async def test_a_cluster_gives_the_same_numbers(tmp_path: Path) -> None:
    """Two workers on loopback, and three policies: one share has two of them."""
    log = await exported(tmp_path, EPSILON, rounds=60)
    words = (
        log,
        "--policy",
        "random",
        "--policy",
        '{"kind": "epsilon-greedy", "epsilon": 0.2}',
        "--policy",
        "greedy",
        *ALL,
        "--json",
    )
    code, here = await run(*words)
    assert code == 0, here
    start: Any = LocalCluster
    cluster = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "protocol": "tcp://", "host": "127.0.0.1"}
    with start(**cluster, dashboard_address=None) as two:
        executor = two.scheduler_address.replace("tcp://", "dask://")
        code, there = await run(*words, "--executor", executor)
        assert (code, json.loads(there)) == (0, json.loads(here)), "equal to the last digit"
        code, failed = await run(log, "--policy", '{"kind": "epsilon-greedy", "epsilon": 2}', "--executor", executor)
        assert code == 1
        assert "policies.0.epsilon" in failed
        with pytest.raises(EvaluationFailed, match=r"a worker has nextarm .*, and this is 0\.0\.0"):
            evaluate_plan(b"{}", "0.0.0")
    code, gone = await run(log, "--executor", executor)
    assert code == 1
    assert "no Dask scheduler answers there" in gone


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--executor", "ray://127.0.0.1:1"), 1, "it is dask://HOST:PORT"),
        (("--executor", "dask://there"), 1, "it is dask://HOST:PORT"),
        (("--url", "http://localhost", "--jobs", "2"), 2, "--jobs is for an evaluation by this command"),
        (("--url", "http://localhost", "--executor", "dask://a:1"), 2, "--executor is for an evaluation by this command"),
    ],
)
async def test_where_it_runs_is_said_in_one_way(tmp_path: Path, words: tuple[str, ...], code: int, message: str) -> None:
    (tmp_path / "log.ndjson").touch()
    found, output = await run(tmp_path / "log.ndjson", *words)
    assert found == code
    assert message in " ".join(output.split())


async def test_without_dask_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.ndjson").touch()
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, output = await run(tmp_path / "log.ndjson", "--executor", "dask://127.0.0.1:1")
    assert code == 1
    assert install_hint("dask") in output
