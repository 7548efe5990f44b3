"""Formats of an exported log beside its own: what other tools for bandits read.

    obp      a NumPy archive with the arrays of Open Bandit Pipeline's `bandit_feedback`
    dsjson   a line of JSON per decision, as Vowpal Wabbit's `--dsjson` reads it

Exported are decisions with a reward of the arm that was suggested; the others have no propensity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from service.engine import events
from service.engine.events import AnyEvent, ArmAdded, Created, Decided, Observed


class Joined(NamedTuple):
    """A decision with its outcome. reward: of the suggested arm."""

    decided: Decided
    observed: Observed
    reward: float


def join(log: Iterable[AnyEvent], arms: list[str]) -> Iterator[Joined]:
    """Decisions with a reward, in the order of their outcomes. arms: takes up the names of the arms."""
    waiting: dict[str, Decided] = {}
    for event in log:
        match event:
            case Created():
                arms.extend(arm.name for arm in event.arms)
            case ArmAdded():
                arms.append(event.name)
            case Decided() if event.arm >= 0:
                waiting[event.id] = event
            case Observed() if event.id in waiting:
                decided = waiting.pop(event.id)
                if event.reward is not None and event.propensity is not None:
                    yield Joined(decided, event, event.reward)


def write_obp(log: Iterable[AnyEvent], out: BinaryIO) -> int:
    """How many decisions were written. Arms that came later have the probability 0 before."""
    arms: list[str] = []
    rows = list(join(log, arms))
    features = [np.frombuffer(row.decided.features, dtype="<f4") for row in rows]
    logged = np.zeros((len(rows), len(arms), 1))
    for place, row in enumerate(rows):
        logged[place, : len(row.decided.weights), 0] = row.decided.weights
    np.savez_compressed(
        out,
        n_rounds=len(rows),
        n_actions=len(arms),
        context=np.array(features, dtype=np.float64).reshape(len(rows), -1),
        action=np.array([row.decided.arm for row in rows], dtype=np.int64),
        reward=np.array([row.reward for row in rows]),
        position=np.zeros(len(rows), dtype=np.int64),
        pscore=np.array([row.decided.propensity for row in rows]),
        pi_b=logged,
        action_names=np.array(arms),
    )
    return len(rows)


def write_dsjson(log: Iterable[AnyEvent], out: BinaryIO) -> int:
    """How many decisions were written. Actions are the allowed arms, the one that was played first, as the format wants it."""
    arms: list[str] = []
    count = 0
    for count, row in enumerate(join(log, arms), 1):  # noqa: B007 - counted after the loop
        out.write(json.dumps(_decision(row, arms), separators=(",", ":")).encode() + b"\n")
    return count


def _decision(row: Joined, arms: Sequence[str]) -> dict[str, object]:
    decided = row.decided
    order = [decided.arm, *(arm for arm in decided.allowed if arm != decided.arm)]
    x = np.frombuffer(decided.features, dtype="<f4")
    return {
        "_label_cost": -row.reward,
        "_label_probability": decided.propensity,
        "_label_Action": decided.allowed.index(decided.arm) + 1,
        "_labelIndex": decided.allowed.index(decided.arm),
        "Timestamp": decided.at.isoformat(),
        "Version": "1",
        "EventId": decided.id,
        "a": [decided.allowed.index(arm) + 1 for arm in order],
        "p": [decided.weights[arm] for arm in order],
        "c": {
            "prompt": {str(i): float(value) for i, value in enumerate(x)},
            "_multi": [{"arm": {arms[arm]: 1}} for arm in decided.allowed],
        },
    }


WRITERS = {"obp": write_obp, "dsjson": write_dsjson}


def convert(source: Path, out: BinaryIO, form: str) -> int:
    """Write an exported log in another form; how many decisions that are."""
    with source.open("rb") as lines:
        return WRITERS[form]((events.decode(line) for line in lines), out)
