"""Scorers of other packages, and what happens when a scorer fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field

from service.scorers import registry
from service.scorers.base import (
    CannotScore,
    InvalidParameter,
    Parameter,
    Sample,
    Scorer,
    ScorerSpec,
    ScorerUnavailable,
    ScoringFailed,
    UnknownScorer,
    declares,
)
from service.scorers.scoring import Scoring
from tests.service.http_client import GREEDY, opened

NONE = np.empty(0, dtype=np.float32)
built: list[dict[str, Any]] = []


def samples(*texts: str) -> list[Sample]:
    return [Sample(output=text, vector=NONE, prompt=NONE) for text in texts]


def build_judge(options: Mapping[str, Any]) -> Scorer:
    """As another package would write it."""
    built.append(dict(options))
    wanted = options.get("word")
    if not isinstance(wanted, str):
        raise ValueError("word must be a string")

    def judge(sample: Sample) -> Any:
        match sample.output:
            case "refuse":
                raise ValueError("this text cannot be judged")
            case "crash":
                raise KeyError("secret text")
            case "nan":
                return float("nan")
            case "text":
                return "high"
        return 0.25 + 0.5 * (wanted in str(sample.output))

    return judge


@declares(
    word=Parameter(annotation=Annotated[str, Field(min_length=2)], doc="what must be there.", is_needed=True),
    weight=Parameter(annotation=float, doc="of the word."),
)
def build_declared(options: Mapping[str, Any]) -> Scorer:
    """As another package would write it that declares its options."""
    built.append(dict(options))
    return lambda sample: options.get("weight", 1.0) * (options["word"] in str(sample.output))


class Entry:
    """As importlib.metadata gives it."""

    def __init__(self, name: str, build: Any) -> None:
        self.name, self.value, self.dist, self._build = name, "package.module:build", None, build

    def load(self) -> Any:
        if isinstance(self._build, Exception):
            raise self._build
        return self._build


@pytest.fixture(autouse=True)
def _plugs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entries = [
        Entry("our-judge", build_judge),
        Entry("declared", build_declared),
        Entry("broken", ImportError("no module")),
        Entry("regex", build_judge),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "nextarm.scorers" else [])
    registry.plugged.cache_clear()
    built.clear()
    yield
    registry.plugged.cache_clear()


@pytest.fixture
async def scoring() -> Any:
    running = Scoring(timeout_s=5.0)
    yield running
    running.close()


async def test_a_plugged_scorer_judges_with_its_own_options_and_is_built_once(scoring: Scoring) -> None:
    given = {"options": {"word": "fine"}}
    assert await scoring.reward("our-judge", given, samples("a fine day")) == 0.75
    assert await scoring.reward("our-judge", given, samples("a fine day", "a bad one")) == 0.5  # the mean of the samples
    assert await scoring.reward("our-judge", {"options": {"word": "bad"}}, samples("a bad one")) == 0.75
    assert built == [{"word": "fine"}, {"word": "bad"}]


async def test_declared_options_reach_the_builder_as_they_were_declared(scoring: Scoring) -> None:
    given = {"options": {"word": "fine", "weight": 1}}
    assert await scoring.reward("declared", given, samples("a fine day")) == 1.0
    assert await scoring.reward("declared", {"options": {"word": "fine", "weight": None}}, samples("a fine day")) == 1.0
    assert built == [{"word": "fine", "weight": 1.0}, {"word": "fine"}]


@pytest.mark.parametrize(
    ("options", "path", "message"),
    [
        ({}, "reward.options.word", "is needed by the scorer 'declared'"),
        ({"word": None}, "reward.options.word", "is needed by the scorer 'declared'"),
        ({"word": "x"}, "reward.options.word", "must have at least 2 characters"),
        (
            {"word": "fine", "weight": "1"},
            "reward.options.weight",
            "must be a number; for yes and no send 1 and 0, without quotes",
        ),
        ({"word": "fine", "other": 1}, "reward.options.other", "is not a parameter of the scorer 'declared'; leave it out"),
    ],
)
async def test_declared_options_are_checked_when_the_bandit_is_created(options: Any, path: str, message: str) -> None:
    async with opened() as service:
        refused = await service.put("/v1/bandits/b", {**GREEDY, "reward": {"source": "declared", "options": options}})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"path": path, "message": message}]
    assert built == []


async def test_the_services_own_names_cannot_be_taken(scoring: Scoring) -> None:
    assert await scoring.reward("regex", {"pattern": "day"}, samples("a fine day")) == 1.0
    assert registry.known()["regex"].origin == "nextarm"
    assert registry.known()["our-judge"].plugged


async def test_every_failure_has_its_name_and_repeats_no_text(scoring: Scoring) -> None:
    given = {"options": {"word": "fine"}}
    with pytest.raises(CannotScore, match="this text cannot be judged"):
        await scoring.reward("our-judge", given, samples("refuse"))
    with pytest.raises(ScoringFailed, match=r"failed: KeyError at test_scoring\.py:\d+") as caught:
        await scoring.reward("our-judge", given, samples("crash"))
    assert "secret" not in str(caught.value)
    for text in ("nan", "text"):
        with pytest.raises(ScoringFailed, match="gave no finite number"):
            await scoring.reward("our-judge", given, samples(text))
    with pytest.raises(InvalidParameter, match="word must be a string"):
        await scoring.reward("our-judge", {"options": {}}, samples("x"))
    with pytest.raises(ScorerUnavailable, match="'broken' cannot be loaded: ImportError"):
        await scoring.reward("broken", {}, samples("x"))
    with pytest.raises(UnknownScorer, match=r"one of client, clip-score, .*our-judge"):
        await scoring.reward("nobody", {}, samples("x"))


async def test_a_scorer_that_hangs_is_given_up_and_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    hanging = ScorerSpec(
        name="hang",
        reads=("text",),
        summary="",
        build=lambda parameters: lambda sample: float(gate.wait(20)),
        parameters={},
        plugged=True,
    )
    known = {**registry.known(), "hang": hanging}
    monkeypatch.setattr(registry, "known", lambda: known)
    scoring = Scoring(timeout_s=0.2)
    waiting = [asyncio.create_task(scoring.reward("hang", {}, samples("x"))) for _ in range(6)]
    assert await scoring.reward("json-valid", {}, samples("1")) == 1.0
    for failure in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(failure, ScoringFailed)
        assert "longer than 0.2 s" in str(failure)
    gate.set()
    scoring.close()
