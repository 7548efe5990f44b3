"""docs/log.md describes every event and every field of the log, and its reader works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from service.engine import events
from service.engine.events import AnyEvent
from service.storage.memory import MemoryStorage
from tests.service.drivers import PAK, Clients, Clock, learner_of

PAGE = (Path(__file__).parents[3] / "docs" / "log.md").read_text()


def described() -> dict[str, set[str]]:
    """Event -> fields that the table names."""
    found: dict[str, set[str]] = {}
    event = ""
    for row in re.findall(r"^\| ?(.*?) ?\| (.*?) \| .* \|$", PAGE, re.MULTILINE):
        event = row[0].strip("` ") or event
        found.setdefault(event, set()).update(re.findall(r"`(\w+)`", row[1]))
    return found


@pytest.mark.parametrize("kind", get_args(AnyEvent))
def test_every_field_of_an_event_is_described(kind: type[msgspec.Struct]) -> None:
    shared = described()["all"] - {"event"}
    fields = {field.name for field in msgspec.structs.fields(kind)} - shared
    assert described()[str(kind.__struct_config__.tag)] == fields, "describe them in docs/log.md"


def test_the_examples_are_events() -> None:
    lines = re.findall(r'^\{"offset".*$', PAGE, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        events.decode(line.encode())


async def test_the_reader_reads_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    bandit = await learner_of(MemoryStorage(), PAK, options={"clock": clock})
    await Clients(PAK, bandit, clock, seed=1).work(10)
    entries = await bandit.entries(after=0, limit=10_000)
    (tmp_path / "bandit.ndjson").write_bytes(b"".join(events.line(offset, payload) for offset, payload in entries))
    monkeypatch.chdir(tmp_path)
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["rows"]) == sum(arm.rewards for arm in bandit.ledger.arms) > 5
    assert all(len(x) == PAK.dim for x, *_ in names["rows"])
