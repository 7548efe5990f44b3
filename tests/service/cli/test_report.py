"""`nextarm report`: its numbers are those of the log and of `nextarm evaluate`, in every format."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.cli import log_reader
from service.cli.log_reader import LogReader
from service.cli.report.bandit_plot import smoothed
from service.engine import events
from service.engine.events import NewArm
from service.engine.learner import Learner
from service.engine.ledger import Ledger
from service.engine.outcomes import AmendmentReport
from service.engine.tallies import Gain
from service.storage.base import Log
from service.storage.memory import MemoryStorage
from tests.bandits.examples import DIM, Example
from tests.service.drivers import Clock, ask, created, learner_of, outcome

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("small", "<b>&large</b>", "third [bold] $x$ " + 60 * "n")
COSTS = (0.001, 0.004, 0.02)


def reward(g: np.random.Generator, arm: int) -> float:
    """0 or 1."""
    return float(g.random() < (0.3, 0.6, 0.5)[arm])


EXAMPLE = Example(kind="lin-ucb", settings={"exploration_floor": 0.5}, dim=DIM, reward=reward)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported log of 600 decisions; of twenty one is overridden, one is cancelled, one expires."""
    path = tmp_path_factory.mktemp("report") / "router.ndjson"
    asyncio.run(write(path))
    return path


async def write(path: Path) -> None:
    clock, g, storage = Clock(), np.random.default_rng(1), MemoryStorage()
    arms = [NewArm(name=name, price=cost) for name, cost in zip(NAMES, COSTS, strict=True)]
    first = msgspec.structs.replace(created(EXAMPLE, name="router"), arms=arms)
    kept, _ = await storage.create(Log("id", "router"), events.encode(first))
    bandit = await Learner.load(storage, kept, clock=clock)
    for i in range(600):
        arm = (await bandit.decisions.submit(ask(EXAMPLE, g, f"d{i}"))).event.arm
        played = {3: (arm + 1) % 3}.get(i % 20, arm)
        if i % 20 == 7:
            await bandit.outcomes.cancel(f"d{i}")
        elif i % 20 == 11:
            clock.advance(200.0)
            await bandit.outcomes.expire()
        elif i != 599:
            given = None if played == arm else played
            await bandit.outcomes.submit(f"d{i}", outcome(EXAMPLE, g, played, arm=given, cost=COSTS[played]))
    entries = await bandit.entries(after=0, limit=10_000)
    path.write_bytes(b"".join(events.line(offset, payload) for offset, payload in entries))


def test_the_policy_is_the_one_that_decides_now(log: Path) -> None:
    reader = LogReader()
    assert sum(1 for _ in reader.read(log.read_bytes().splitlines(keepends=True))) == 600
    assert reader.policy == "lin-ucb"
    promoted = {"event": "shadow_promoted", "at": "2026-01-01T00:00:00Z", "id": "p", "shadow": "plain", "shadow_offset": 1}
    for event, decides in (
        ({"event": "shadow_created", "shadow": "plain", "policy": "greedy"}, "lin-ucb"),
        (promoted, "greedy"),
        (promoted, "lin-ucb"),
    ):
        reader.add(json.dumps(event))
        assert reader.policy == decides


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, words)), env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.output


def reported(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("report", "--quiet", *words, "--format", "json"))
    return found


CHATS = Example(kind="epsilon-greedy", settings={"epsilon": 0.7}, reward=lambda g, arm: float(g.random() < (0.2, 0.5, 0.8)[arm]))


async def write_sessions(path: Path) -> Gain | None:
    """A log of 300 decisions, most of them of sessions; some outcomes were amended. The gain that the health has of it."""
    bandit, g = await learner_of(MemoryStorage(), CHATS, name="chats", session_ttl_s=3600.0), np.random.default_rng(2)
    for i in range(300):
        session = f"s{i % 80}" if i % 3 else None
        arm = (await bandit.decisions.submit(ask(CHATS, g, f"d{i}", session=session))).event.arm
        given = {} if i % 25 else {"arm": (arm + 1) % 3}
        await bandit.outcomes.submit(f"d{i}", outcome(CHATS, g, (arm + bool(given)) % 3, **given))
        if i % 7 == 0:
            await bandit.outcomes.amend(f"d{i}", AmendmentReport(values={"reward": 0.5}))
    entries = await bandit.entries(after=0, limit=10_000)
    path.write_bytes(b"".join(events.line(offset, payload) for offset, payload in entries))
    again = Ledger.unpack(bandit.created, bandit.ledger.pack())
    assert again.tallies == bandit.ledger.tallies
    return again.tallies.gain([0, 1, 2], is_contextual=False)


def test_decisions_of_a_session_are_one_cluster_with_the_weights_of_its_first_one(tmp_path: Path) -> None:
    path = tmp_path / "chats.ndjson"
    health = asyncio.run(write_sessions(path))
    words = ("--estimator", "snips", "--reward-range", "0", "1")
    found, evaluated = reported(path, *words[2:]), json.loads(run("evaluate", path, "--json", "--quiet", *words))
    counts = found["decisions"]
    assert counts["sticky"] > 100
    assert counts["without_first"] == 0
    assert evaluated["decisions"] == counts["observed"] - counts["overridden"] == 288
    policies, behaviour = {policy["label"]: policy for policy in evaluated["fixed_arms"]}, evaluated["behaviour"]
    assert (found["reward"]["value"], found["reward"]["interval"]) == (
        pytest.approx(behaviour["value"]), pytest.approx(behaviour["interval"]),
    )  # fmt: skip
    for arm in found["arms"]:
        policy = policies[f"always {arm['name']}"]
        assert (arm["verdict"], arm["reason"]) == (policy["verdict"], policy["reason"])
        if arm["always"] is not None:
            assert arm["always"]["value"] == pytest.approx(policy["value"])
            assert arm["always"]["interval"] == pytest.approx(policy["interval"])
    assert health is not None
    gain, names = found["gain"], [arm["name"] for arm in found["arms"]]
    best = policies[f"always {gain['best_fixed']}"]
    (low, high), (other_low, other_high) = (one["anytime_interval"] for one in (behaviour, best))
    assert gain["anytime_interval"][0] < low - other_high
    assert high - other_low < gain["anytime_interval"][1]
    assert names[health.best] == gain["best_fixed"]
    assert health.value == pytest.approx(gain["value"])
    assert health.interval == pytest.approx(tuple(gain["interval"]), abs=1e-4)


def test_a_decision_whose_first_one_is_not_known_counts_in_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.ndjson"
    asyncio.run(write_sessions(path))
    monkeypatch.setattr(log_reader, "KEPT_SESSIONS", 10)
    counts = reported(path)["decisions"]
    assert 50 < counts["without_first"] < counts["sticky"]
    assert f"{counts['without_first']} of a session whose first decision is not known" in " ".join(run("report", path).split())


def test_values_of_fixed_arms_are_those_of_evaluate(log: Path) -> None:
    found, evaluated = (
        reported(log),
        json.loads(run("evaluate", log, "--json", "--quiet", "--estimator", "snips", "--estimator", "dr")),
    )
    policies, behaviour = {policy["label"]: policy for policy in evaluated["fixed_arms"]}, evaluated["behaviour"]
    assert found["reward"]["value"] == pytest.approx(behaviour["value"])
    for arm in found["arms"]:
        policy = policies[f"always {arm['name']}"]
        assert arm["always"]["value"] == pytest.approx(policy["value"])
        assert arm["always"]["interval"] == pytest.approx(policy["interval"])
        assert (arm["verdict"], arm["reason"]) == (policy["verdict"], policy["reason"])
    gain, best = found["gain"], max(found["arms"], key=lambda arm: arm["always"]["value"])
    assert gain["best_fixed"] == best["name"] == NAMES[1]
    assert gain["value"] == pytest.approx(found["reward"]["value"] - best["always"]["value"])
    assert gain["doubly_robust"]["value"] == pytest.approx(
        behaviour["value"] - policies[f"always {best['name']}"]["estimates"]["dr"]["value"]
    )
    assert gain["interval"][0] < gain["value"] < gain["interval"][1]


def test_a_damaged_log_is_refused(log: Path, tmp_path: Path) -> None:
    lines, path = log.read_bytes().splitlines(keepends=True), tmp_path / "damaged.ndjson"
    for damaged, message in (
        ([*lines[:50], *lines[51:]], "entry 51 is missing"),
        ([*lines[:50], *lines[48:]], "offset 49 follows 50"),
    ):
        path.write_bytes(b"".join(damaged))
        assert message in run("report", "--quiet", path, code=1)


def test_counts_and_costs_are_those_of_the_log(log: Path) -> None:
    with log.open("rb") as lines:
        decisions = list(LogReader().read(lines))
    found, observed = reported(log), [decision for decision in decisions if decision.state == "observed"]
    assert found["decisions"] == {
        "decisions": 600, "observed": len(observed), "without_reward": 0, "overridden": 30, "expired": 30, "cancelled": 30,
        "open": 1, "partial": 0, "stop": 0, "sticky": 0, "without_first": 0, "imported": 0,
    }  # fmt: skip
    cost, solved = (sum(getattr(decision, name) for decision in observed) for name in ("cost", "reward"))
    assert found["cost_per_reward"]["value"] == pytest.approx(cost / solved)
    for index, arm in enumerate(found["arms"]):
        called = [decision for decision in observed if decision.played == index]
        assert arm["decisions"] == sum(decision.arm == index for decision in decisions)
        assert arm["outcomes"] == len(called)
        assert arm["reward"] == pytest.approx(np.mean([decision.reward for decision in called]))
        assert arm["cost"] == pytest.approx(COSTS[index])
    drawn = [decision for decision in observed if not decision.is_overridden]
    estimates = np.array([decision.scores["estimate"] for decision in drawn], dtype=float)
    lost = estimates.max(1) - (estimates * [decision.weights for decision in drawn]).sum(1)
    assert found["exploration"]["expected"]["value"] == pytest.approx(lost.mean())
    groups = found["prompt"]["groups"]
    assert sum(group["decisions"] for group in groups) == len(drawn)
    assert {name for group in groups for name in group["examples"]} <= {decision.id for decision in drawn}


def test_the_text_fits_a_terminal_and_answers(log: Path) -> None:
    text = run("report", log, "--quiet", "--reward-range", 0, 1)
    assert max(map(len, text.splitlines())) <= 80
    for said in ("Gain over the best fixed arm", "What exploration cost", "Where the prompt pays", "Cost per solved prompt",
                 "What is missing", "At every moment at once", "30 expired without an outcome", "[bold] $x$"):  # fmt: skip
        assert said in re.sub(r"\s+", " ", text)


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""


def test_the_page_needs_no_script_and_no_network(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run("report", log, "--quiet", "-o", path)
    text = path.read_text()
    page = Page(text)
    assert page.policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.tags.count("svg") == 4
    assert {"script", "link", "img", "iframe", "b"}.isdisjoint(page.tags), "names are escaped"
    assert [link for link in page.loads if not link.startswith("#")] == []
    assert "url(http" not in text
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;&amp;large&lt;/b&gt;" in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    run("report", log, "--quiet", "-o", path, "--force")
    assert path.read_text() == text, "the same log gives the same page"


def test_formats_follow_the_file_and_nothing_is_overwritten(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run("report", log, "--quiet", "-o", path)
    assert json.loads(path.read_text()) == reported(log)
    assert "exists" in run("report", log, "-o", path, code=1)
    assert "needs -o FILE" in run("report", log, "--format", "html", code=2)
    run("report", log, "--quiet", "-o", tmp_path / "report.txt")
    assert "What exploration cost" in (tmp_path / "report.txt").read_text()


def test_a_log_that_says_nothing_is_reported_as_that(log: Path, tmp_path: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    path = tmp_path / "new.ndjson"
    path.write_bytes(lines[0])
    found = reported(path)
    assert (found["gain"], found["reward"], found["prompt"], found["cost_per_reward"]) == (None, None, None, None)
    assert "not known" in run("report", path, "--quiet")
    run("report", path, "--quiet", "-o", tmp_path / "new.html")
    path.write_bytes(b"".join(lines[:40]))
    assert [arm["verdict"] for arm in reported(path)["arms"]] == ["cannot_answer"] * 3
    run("report", path, "--quiet", "-o", tmp_path / "new.html", "--force")


def test_what_is_wrong_is_named(log: Path, tmp_path: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    path = tmp_path / "torn.ndjson"
    for content, message in [
        (b"", "the log is empty"),
        (lines[1], "entry 1: a log begins with the event that creates the bandit"),
        (lines[0] + lines[1][:-9], "line 2: the line is torn"),
        (lines[0] + lines[0], "entry 2: here another bandit's log begins"),
    ]:
        path.write_bytes(content)
        assert message in run("report", path, "--quiet", code=1)
    assert "outside of reward_range" in run("report", log, "--quiet", "--reward-range", 0, 0.5, code=2)
    assert "none.db" in run("report", "other", "--store", f"sqlite:///{tmp_path}/none.db", "--quiet", code=1)
    assert "127.0.0.1:9" in run("report", "router", "--url", "http://127.0.0.1:9", "--quiet", code=1)


# -- nextarm plot ----------------------------------------------------------------------------------------------------------------


def test_means_of_a_window_have_the_interval_of_a_mean() -> None:
    rewards = np.array([0.0, 1.0, 1.0, 0.0, 3.0])
    alone = np.arange(5)
    places, means, reach = smoothed(rewards, alone, window=4, confidence=0.95)
    assert places.tolist() == [4, 5]
    assert means == pytest.approx([0.5, 1.25])
    assert reach == pytest.approx([1.959964 * part.std(ddof=1) / 2.0 for part in (rewards[:4], rewards[1:])])
    _, far, same = smoothed(rewards + 1e9, alone, window=4, confidence=0.95)
    assert far == pytest.approx(means + 1e9, rel=1e-15)
    assert same == pytest.approx(reach)
    # of a session the sum has a square: 0 1 | 1 0 is no spread at all, 1 1 | 0 3 is one of -.5 and .5
    _, same, reach = smoothed(rewards, np.array([0, 0, 1, 1, 2]), window=4, confidence=0.95)
    assert same == pytest.approx(means)
    assert reach[0] == pytest.approx(0.0)
    sums = [1.0 - 1.25, 1.0 - 2.5, 3.0 - 1.25]
    assert reach[1] == pytest.approx(1.959964 * (sum(one**2 for one in sums) * 3 / 2) ** 0.5 / 4)


def test_a_bandit_is_drawn_from_its_log(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "bandit.svg"
    run("plot", log, "--quiet", "-o", path)
    texts = [element.text or "" for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    drawn = reported(log)["decisions"]
    with_reward = drawn["observed"] - drawn["overridden"]
    assert f"router: lin-ucb, {with_reward:,} decisions with a reward" in texts
    order = [text for text in texts if text.startswith(("small", "<b>", "third"))]
    best_on_top = [arm["name"] for arm in sorted(reported(log)["arms"], key=lambda arm: -arm["always"]["value"])]
    assert order[-3:] == [name if len(name) <= 28 else f"{name[:27]}…" for name in best_on_top]
    assert "exists" in run("plot", log, "-o", path, code=1)
    assert "must end in" in run("plot", log, "-o", tmp_path / "bandit.gif", code=1)


def test_one_reward_is_a_point(log: Path, tmp_path: Path) -> None:
    path, drawn = tmp_path / "first.ndjson", tmp_path / "first.svg"
    lines = log.read_bytes().splitlines(keepends=True)
    observed = next(place for place, line in enumerate(lines) if b'"observed"' in line)
    path.write_bytes(b"".join(lines[: observed + 1]))
    run("plot", path, "--quiet", "-o", drawn)
    groups = [group for group in ElementTree.parse(drawn).iter(f"{SVG}g") if group.get("id")]
    shares = next(path for group in groups if "PolyCollection" in group.get("id", "") for path in group.iter(f"{SVG}path"))
    points = [use for group in groups if group.get("id") == "reward" for use in group.iter(f"{SVG}use")]
    xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", shares.get("d", ""))]
    assert max(xs) - min(xs) > 300, "the shares fill the picture"
    assert points, "the reward is a point"


@pytest.mark.parametrize("entries", [12, 60])
def test_a_young_bandit_is_drawn_too(log: Path, tmp_path: Path, entries: int) -> None:
    path = tmp_path / "young.ndjson"
    path.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:entries]))
    run("plot", path, "--quiet", "-o", tmp_path / "young.png")
    assert (tmp_path / "young.png").read_bytes().startswith(b"\x89PNG")


def test_a_bandit_without_rewards_is_not_drawn(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.ndjson"
    path.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    assert "none of its 0 decisions has a reward" in run("plot", path, "--quiet", "-o", tmp_path / "new.png", code=1)
    assert not (tmp_path / "new.png").exists()
