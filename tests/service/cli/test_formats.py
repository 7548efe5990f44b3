"""Exports for other tools: the rows are the decisions of the log, and evaluate to the same number."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.cli import formats
from service.engine import events
from service.engine.events import AnyEvent, Decided, Observed
from service.storage.memory import MemoryStorage
from tests.service.drivers import PAK, Clients, Clock, learner_of


@pytest.fixture
async def log() -> list[AnyEvent]:
    """Of a bandit whose clients do everything, new arms included."""
    clock = Clock()
    bandit = await learner_of(MemoryStorage(), PAK, options={"clock": clock})
    await Clients(PAK, bandit, clock, seed=4).work(40)
    return [events.decode(payload) for _, payload in await bandit.entries(after=0, limit=10_000)]


def usable(log: list[AnyEvent]) -> list[tuple[Decided, Observed]]:
    decided = {event.id: event for event in log if isinstance(event, Decided)}
    closed = (event for event in log if isinstance(event, Observed) and event.reward is not None and event.propensity is not None)
    return [(decided[event.id], event) for event in closed]


def test_the_archive_holds_what_was_logged(log: list[AnyEvent]) -> None:
    out = io.BytesIO()
    wanted = usable(log)
    assert formats.write_obp(log, out) == len(wanted) > 20
    out.seek(0)
    found = np.load(out)
    rows = np.arange(int(found["n_rounds"]))
    assert found["context"].shape == (len(wanted), PAK.dim)
    assert found["reward"].tolist() == [observed.reward for _, observed in wanted]
    np.testing.assert_array_equal(found["pi_b"][rows, found["action"], 0], found["pscore"])
    np.testing.assert_allclose(found["pi_b"].sum(axis=1), 1.0)
    assert len(found["action_names"]) == int(found["n_actions"]) > 3, "arms were added"


def test_the_lines_hold_what_was_logged(log: list[AnyEvent]) -> None:
    out = io.BytesIO()
    assert formats.write_dsjson(log, out) == len(usable(log))
    for line, (decided, observed) in zip(out.getvalue().splitlines(), usable(log), strict=True):
        row = json.loads(line)
        assert (row["EventId"], -row["_label_cost"]) == (decided.id, observed.reward)
        assert row["_label_probability"] == decided.propensity
        assert row["p"][0] == decided.propensity, "the action that was played comes first"
        assert sum(row["p"]) == pytest.approx(1.0)
        assert row["a"][0] == row["_label_Action"] == row["_labelIndex"] + 1
        assert len(row["c"]["_multi"]) == len(row["a"]) == len(decided.allowed)


def test_a_format_that_is_no_text_needs_a_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", "b", "--store", f"sqlite:///{tmp_path / 'none.db'}", "--format", "obp"])
    assert result.exit_code == 2
    assert "needs --out FILE" in result.output
