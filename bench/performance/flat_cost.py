"""Does a round cost in round 100,000 what it costs in round 1,000? Every policy in its default form, in process.

    python -m bench.performance.flat_cost                       about five minutes of one core
    python -m bench.performance.flat_cost --late 20000 --only pak-ucb,dak-ucb

A round is what the service does: weights for one context, fold one observation, prepare. CPU time of the thread, median of 300
rounds around round 1,000 and around the late one, and the bytes that the arms hold then, derived values included.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bandits import state as states
from bandits.registry import POLICIES, build
from bandits.types import Context, Observation, Policy, State

ARMS, DIM, OUTPUT, CLASSES, MEASURED = 4, 64, 32, 10, 300
SETTINGS: dict[str, dict[str, Any]] = {
    "mixture-ucb": {"bandwidth": 6.0},
    "mixture-greedy": {"bandwidth": 6.0},
    "dak-ucb": {"output_bandwidth": 6.0},
    "one-arm": {"arm": 1},
}


class World:
    """Random prompts and outcomes, drawn ahead so that drawing is not measured."""

    def __init__(self, policy: Policy) -> None:
        rng = np.random.default_rng(7)
        prompts = rng.normal(size=(512, DIM))
        self.policy = policy
        self.prompts = torch.from_numpy(prompts / np.linalg.norm(prompts, axis=1, keepdims=True))
        self.rewards = (rng.random((512, ARMS)) < np.linspace(0.3, 0.6, ARMS)).astype(float)
        self.outputs = torch.from_numpy(rng.normal(size=(512, OUTPUT)))
        self.classes = torch.from_numpy(rng.dirichlet(np.ones(CLASSES), size=512))

    def features(self, t: int) -> Tensor:
        return self.prompts[t % 512] if self.policy.dim else torch.empty(0, dtype=torch.float64)

    def seen(self, t: int, arm: int) -> Observation:
        outputs = self.classes if self.policy.outputs == "probabilities" else self.outputs
        rows = outputs[t * 7 % 512][None] if self.policy.output_dim else torch.empty((0, 0), dtype=torch.float64)
        return Observation(
            arm=arm, features=self.features(t), reward=float(self.rewards[t * 3 % 512, arm]), cost=0.1, output=rows
        )

    def context(self, t: int) -> Context:
        return Context(allowed=(True,) * ARMS, features=self.features(t), prices=tuple(0.1 * (arm + 1) for arm in range(ARMS)))


def begun(kind: str) -> tuple[Policy, State, World]:
    """The policy in its default form, with a reference where it needs one."""
    probe = POLICIES[kind]
    outputs = 0 if "output" not in probe.needs else CLASSES if probe.outputs == "probabilities" else OUTPUT
    dim = DIM if "features" in probe.needs else 0
    policy = build(kind, SETTINGS.get(kind, {}), dim=dim, output_dim=outputs, seed=3)
    state = states.start(policy, arms=ARMS)
    if "reference" in policy.needs:
        rows = torch.from_numpy(np.random.default_rng(1).normal(size=(200, OUTPUT)))
        state = states.fold(policy, state, Observation(output=rows))
    return policy, policy.prepare(state), World(policy)


def measured(policy: Policy, state: State, world: World, start: int) -> tuple[State, float]:
    """The state after the measured rounds, and milliseconds of CPU per round."""
    taken = []
    state = policy.prepare(state)
    for t in range(start, start + MEASURED):
        context, seen = world.context(t), world.seen(t, t % ARMS)
        begin = time.thread_time()
        policy.weights(state, [context])
        state = policy.prepare(states.fold(policy, state, seen))
        taken.append(time.thread_time() - begin)
    return state, 1e3 * float(np.median(taken))


def held(value: Any) -> int:
    """Bytes of the tensors in reach."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(held, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, Policy):
        return sum(held(getattr(value, item.name)) for item in dataclasses.fields(value))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--late", type=int, default=100_000, help="the late round")
    parser.add_argument("--only", default="", help="these policies, separated by commas")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("policy", "early ms", "late ms", "ratio", "early kB", "late kB", title=f"round 1,000 and round {chosen.late:,}")
    for kind in chosen.only.split(",") if chosen.only else POLICIES:
        policy, state, world = begun(kind)
        for t in range(1_000 - MEASURED):
            state = states.fold(policy, state, world.seen(t, t % ARMS))
        state, early = measured(policy, state, world, 1_000 - MEASURED)
        early_bytes = held(state.arms)
        for t in track(range(1_000, chosen.late - MEASURED), kind, console=Console(stderr=True), transient=True):
            state = states.fold(policy, state, world.seen(t, t % ARMS))
        state, late = measured(policy, state, world, chosen.late - MEASURED)
        table.add_row(
            kind,
            f"{early:.3f}",
            f"{late:.3f}",
            f"{late / early:.2f}",
            f"{early_bytes / 1e3:.0f}",
            f"{held(state.arms) / 1e3:.0f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
