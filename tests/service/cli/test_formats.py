"""Exports for other tools: the rows are the decisions of the log, and evaluate to the same number."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service import install_hint
from service.__main__ import main
from service.cli import formats
from service.cli.log_reader import LogError, LogReader, amendments
from service.engine import events
from service.engine.events import Amended, AnyEvent, Cancelled, Decided, Expired, Observed, Partial
from service.storage.base import StorageDamagedError, StorageUnavailableError
from service.storage.memory import MemoryStorage
from tests.service.drivers import PAK, Clients, Clock, created, learner_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def lines() -> list[bytes]:
    """The exported log of a bandit whose clients do everything, new arms included."""
    clock = Clock()
    bandit = await learner_of(MemoryStorage(), PAK, options={"clock": clock})
    await Clients(PAK, bandit, clock, seed=1).work(40)
    return [events.line(offset, payload) for offset, payload in await bandit.entries(after=0, limit=10_000)]


@pytest.fixture
def log(lines: list[bytes]) -> list[AnyEvent]:
    """The same as events."""
    return [events.decode(line) for line in lines]


def usable(log: list[AnyEvent]) -> list[tuple[Decided, Observed]]:
    decided = {event.id: event for event in log if isinstance(event, Decided)}
    closed = (event for event in log if isinstance(event, Observed) and event.reward is not None and event.propensity is not None)
    return [(decided[event.id], event) for event in closed]


def test_the_archive_holds_what_was_logged(lines: list[bytes], log: list[AnyEvent]) -> None:
    out = io.BytesIO()
    wanted = usable(log)
    assert formats.write_obp(lines, out) == len(wanted) > 20
    out.seek(0)
    found = np.load(out)
    rows = np.arange(int(found["n_rounds"]))
    assert found["context"].shape == (len(wanted), PAK.dim)
    assert found["reward"].tolist() == [observed.reward for _, observed in wanted]
    np.testing.assert_array_equal(found["pi_b"][rows, found["action"], 0], found["pscore"])
    np.testing.assert_allclose(found["pi_b"].sum(axis=1), 1.0)
    assert len(found["action_names"]) == int(found["n_actions"]) > 3, "arms were added"


def test_the_lines_hold_what_was_logged(lines: list[bytes], log: list[AnyEvent]) -> None:
    out = io.BytesIO()
    assert formats.write_dsjson(lines, out) == len(usable(log))
    for line, (decided, observed) in zip(out.getvalue().splitlines(), usable(log), strict=True):
        row = json.loads(line)
        assert (row["EventId"], -row["_label_cost"]) == (decided.id, observed.reward)
        assert row["_label_probability"] == decided.propensity
        assert row["p"][0] == decided.propensity, "the action that was played comes first"
        assert sum(row["p"]) == pytest.approx(1.0)
        assert row["a"][0] == row["_label_Action"] == row["_labelIndex"] + 1
        assert len(row["c"]["_multi"]) == len(row["a"]) == len(decided.allowed)


def test_the_reader_joins_what_the_log_has(lines: list[bytes], log: list[AnyEvent]) -> None:
    reader = LogReader()
    joined = {decision.id: decision for decision in reader.read(lines)}
    decided = [event for event in log if isinstance(event, Decided)]
    closed = {event.id: event for event in log if isinstance(event, Observed | Expired | Cancelled)}
    assert joined.keys() == {event.id for event in decided}
    for event in decided:
        decision, close = joined[event.id], closed.get(event.id)
        assert (decision.at, decision.arm, decision.weights) == (event.at, event.arm, tuple(event.weights))
        assert decision.vector == tuple(events.vector_tensor(event.features).tolist())
        assert decision.state == ("open" if close is None else type(close).__name__.lower())
        if isinstance(close, Observed):
            assert (decision.played, decision.reward, decision.cost) == (close.arm, close.reward, close.cost)
            assert decision.is_overridden == (close.propensity is None)
    assert {decision.state for decision in joined.values()} == {"observed", "expired", "cancelled", "open"}
    assert any(decision.is_overridden for decision in joined.values())
    assert not all(arm.is_active for arm in reader.arms)
    assert (reader.bandit, reader.offset) == ("greeter", len(lines))


@pytest.mark.parametrize("name", ["log-v1.ndjson", "log-v1-stop.ndjson"])
def test_the_reader_reads_logs_of_earlier_versions(name: str) -> None:
    with (ROOT / "tests" / "data" / name).open("rb") as lines:
        assert len(list(LogReader().read(lines))) >= 1


def test_the_reader_skips_what_it_does_not_know(lines: list[bytes]) -> None:
    more = [line.replace(b'"v":1', b'"v":1,"later":{}') for line in lines]
    more.insert(1, b'{"offset":2,"event":"from a later version","at":"2026-01-01T00:00:00Z"}\n')
    more = [re.sub(rb'^{"offset":\d+', b'{"offset":%d' % number, line) for number, line in enumerate(more, 1)]
    assert [d.id for d in LogReader().read(more)] == [d.id for d in LogReader().read(lines)]


def test_the_reader_joins_partial_and_amended_outcomes() -> None:
    """a: all in parts; b: amended twice; c: expired with a part; d: expired, amended to a reward; e: still lacks its reward."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    decided = [
        Decided(at=at, id=name, arm=1, propensity=0.5, weights=[0.5, 0.5], scores={}, allowed=[0, 1], price=1.0, features=b"",
                episode=name, attempt=1, body="")
        for name in "abcde"
    ]  # fmt: skip

    def amended(name: str, n: int, reward: float, **signals: float) -> Amended:
        return Amended(
            at=at, id=name, n=n, outcome=1, body="", reward=reward, cost=0.3, signals=signals, before={}, counts="before", held=0,
            arm=1, propensity=0.5, price=1.0, features=b"",
        )  # fmt: skip

    late = Observed(at=at, id="a", arm=0, reward=0.7, cost=9.0, propensity=None, signals={"x": 3.0, "y": 4.0}, body="")
    log: list[AnyEvent] = [
        created(arms=2),
        *decided,
        Partial(at=at, id="a", n=1, arm=1, cost=0.1),
        Partial(at=at, id="a", n=2, arm=1, cost=0.2, signals={"x": 1.0}),
        late,
        Partial(at=at, id="a", n=3, arm=1, cost=5.0),
        Observed(at=at, id="b", arm=1, reward=0.1, cost=0.2, propensity=0.5, signals={"x": 1.0}, body=""),
        Partial(at=at, id="c", n=1, arm=0, signals={"x": 2.0}),
        Expired(at=at, id="c", reward=None),
        Expired(at=at, id="d", reward=0.0),
        amended("b", 1, 0.2, x=1.0),
        amended("b", 2, 0.4, y=2.0),
        amended("d", 1, 0.6),
        Partial(at=at, id="e", n=1, arm=1, cost=0.4),
    ]
    lines = [events.line(offset, events.encode(event)) for offset, event in enumerate(log, 1)]
    found = {decision.id: decision for decision in LogReader(amendments(lines)).read(lines)}
    shown = {
        name: (d.state, d.played, d.reward, d.cost, dict(d.signals), d.is_overridden, d.is_amended) for name, d in found.items()
    }
    assert shown == {
        "a": ("observed", 1, 0.7, 0.1, {"x": 1.0, "y": 4.0}, False, False),
        "b": ("observed", 1, 0.4, 0.3, {"y": 2.0}, False, True),
        "c": ("expired", 0, None, None, {"x": 2.0}, True, False),
        "d": ("expired", 1, 0.6, 0.3, {}, False, True),
        "e": ("partial", 1, None, 0.4, {}, False, False),
    }
    assert [name for name, decision in found.items() if decision.has_outcome] == ["a", "b", "d"]
    as_first = {decision.id: decision for decision in LogReader().read(lines)}
    assert (as_first["b"].reward, as_first["d"].reward) == (0.1, 0.0)


def test_the_reader_names_the_line_that_is_wrong(lines: list[bytes]) -> None:
    for wrong, message in [
        (lines[1:], "line 1: a log begins with the event that creates the bandit"),
        ([*lines, lines[0]], f"line {len(lines) + 1}: here another bandit's log begins"),
        ([*lines[:-1], lines[-1][:-5]], f"line {len(lines)}: it is torn"),
        ([*lines, b"{}\n"], f"line {len(lines) + 1}: this is no entry of a log: it has no 'event'"),
        (
            [lines[0], b'{"event": "decided", "at": "2026-01-01T00:00:00Z"}\n'],
            "line 2: this is no entry of a log: it has no 'id'",
        ),
        ([*lines, b"[1]\n"], "this is no entry of a log"),
        ([*lines, b"no JSON\n"], "this is no entry of a log"),
        ([*lines[:40], *lines[41:]], "line 41: entry 41 is missing before offset 42"),
        ([*lines[:40], *lines[43:]], "line 41: entries 41 to 43 are missing before offset 44"),
        ([*lines[:40], *lines[38:]], "line 41: offset 39 follows 40: lines come twice"),
    ]:
        with pytest.raises(LogError, match=message):
            list(LogReader().read(wrong))


def test_the_reader_needs_the_standard_library_alone() -> None:
    names, unread = set[str](), ["service.cli.log_reader"]
    while unread:
        nodes = list(ast.walk(ast.parse((ROOT / f"{unread.pop().replace('.', '/')}.py").read_text())))
        found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        unread += [name for name in found - names if name.startswith("service.")]
        names |= found
    assert names >= {"json", "service.engine.sessions"}
    assert {name.partition(".")[0] for name in names} - {"service"} <= sys.stdlib_module_names


def test_the_table_holds_every_decision(lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(formats, "ROWS", 30)
    out, reader = io.BytesIO(), LogReader()
    wanted = list(reader.read(lines))
    assert formats.write_parquet(lines, out) == len(wanted)
    file = parquet.ParquetFile(out)
    assert file.num_row_groups == -(-len(wanted) // 30) > 1
    names = [arm.name for arm in reader.arms]
    for row, decision in zip(file.read().to_pylist(), wanted, strict=True):
        assert (row["id"], row["state"], row["offset"], row["at"]) == (decision.id, decision.state, decision.offset, decision.at)
        assert (row["arm"], row["reward"], row["cost"]) == (names[decision.arm], decision.reward, decision.cost)
        assert row["played"] == (None if decision.played is None else names[decision.played])
        assert row["features"] == list(decision.vector)
        assert dict(zip(row["allowed"], row["weights"], strict=True))[row["arm"]] == decision.propensity
        assert dict(row["scores"])["estimate"] == [decision.scores["estimate"][arm] for arm in decision.allowed]


@pytest.fixture
def exported(lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log in every format that can be written here, in the current folder."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "bandit.ndjson"
    source.write_bytes(b"".join(lines))
    for form, ending in {"obp": "npz", "dsjson": "json", "parquet": "parquet"}.items():
        if form != "parquet" or find_spec("pyarrow"):
            with source.with_suffix(f".{ending}").open("wb") as out:
                formats.convert(source, out, form)


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "log.md").read_text(), re.DOTALL)


@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("block", [block for block in BLOCKS if "nextarm.Client" not in block])  # those ask a running service
def test_the_lines_of_the_page_load_it(block: str) -> None:
    for package in {"pandas": ("pandas", "pyarrow")}.get(block.split()[1], re.findall(r"^(?:from|import) (\w+)", block, re.M)):
        pytest.importorskip(package)
    exec(compile(block, "docs/log.md", "exec"), {})


def test_a_table_names_the_package_that_it_needs(lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StorageUnavailableError, match=re.escape(install_hint("parquet"))):
        formats.write_parquet(lines, io.BytesIO())


def test_an_archive_without_rows_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(StorageUnavailableError, match="no decision of its own with a reward"):
        formats.write_obp(lines[:1], io.BytesIO())


def test_a_log_that_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.ndjson"
    path.write_bytes(b'{"event":"created"')
    with pytest.raises(StorageDamagedError, match=r"torn.ndjson: line 1: it is torn"):
        formats.convert(path, io.BytesIO(), "dsjson")


def test_a_format_that_is_no_text_needs_a_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", "b", "--store", f"sqlite:///{tmp_path / 'none.db'}", "--format", "obp"])
    assert result.exit_code == 2
    assert "needs --out FILE" in result.output
