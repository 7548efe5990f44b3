"""The loop of tests, benches and replays, against what can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from bandits.policies.baselines import EpsilonGreedy, Greedy, OneArm, Random
from bandits.policies.pak_ucb import PakUcb
from bandits.regression.ridge import MeanArm
from bandits.simulation import World, simulate
from bandits.types import ArmState, Context, Need, Observation, Policy, State, Weights


def table(rounds: int = 30, *, features: int = 0) -> World:
    """Three arms; which is best changes with the round."""
    g = np.random.default_rng(4)
    expected = g.uniform(0.1, 0.9, (rounds, 3))
    return World(
        features=g.standard_normal((rounds, features)),
        rewards=expected + 0.01 * g.standard_normal((rounds, 3)),
        expected=expected,
        prices=(0.2, 0.4, 0.6),
    )


@dataclass(frozen=True, kw_only=True)
class Watching(Policy):
    """A policy that plays the arms in turn by what is pending and learned, and remembers every call."""

    kind: ClassVar[str] = "watching"
    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})
    summary: ClassVar[str] = ""
    calls: ClassVar[list[tuple[str, object]]] = []

    def init(self) -> MeanArm:
        return MeanArm()

    def update(self, state: State, seen: Observation) -> ArmState:
        self.calls.append(("learn", (seen.arm, seen.reward, seen.was_pending, tuple(seen.features.tolist()))))
        return state.arms[seen.arm].update(seen.reward)

    def add_pending(self, arm: ArmState, features: torch.Tensor) -> ArmState:
        self.calls.append(("anticipate", tuple(features.tolist())))
        return arm

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        self.calls.append(("weigh", (contexts[0].pending, contexts[0].prices)))
        turn = (sum(arm.pulls for arm in state.arms) + sum(contexts[0].pending)) % 3
        return Weights(torch.nn.functional.one_hot(torch.tensor([turn]), 3).to(torch.float64))


def test_a_fixed_arm_earns_its_column_and_regrets_the_rest() -> None:
    world = table()
    trace = simulate(OneArm(arm=1), world)
    assert trace.picks.tolist() == [1] * 30
    assert trace.rewards.tolist() == world.rewards[:, 1].tolist()
    assert trace.regret.tolist() == pytest.approx((world.expected.max(1) - world.expected[:, 1]).tolist())
    assert trace.propensities.tolist() == [1.0] * 30
    assert trace.state.arms[1].reward_sum == pytest.approx(world.rewards[:, 1].sum())
    assert trace.optimal_pick_ratio(world.expected) == float(np.mean(world.expected.argmax(1) == 1))


def test_ties_count_as_optimal() -> None:
    world = World(features=np.empty((2, 0)), rewards=np.zeros((2, 2)), expected=np.array([[0.4, 0.4], [0.4, 0.3]]))
    assert simulate(OneArm(arm=1), world).optimal_pick_ratio(world.expected) == 0.5


def test_delayed_outcomes_are_learned_when_they_are_due_and_pending_until_then() -> None:
    Watching.calls.clear()
    trace = simulate(Watching(), table(4, features=2), delays=[2, 0, 5, 0])
    world = table(4, features=2)
    x = [tuple(row) for row in world.features.tolist()]
    r = [float(world.rewards[t, t % 3]) for t in range(4)]
    prices = (0.2, 0.4, 0.6)
    assert trace.picks.tolist() == [0, 1, 2, 0]
    assert Watching.calls == [
        ("weigh", ((0, 0, 0), prices)),
        ("anticipate", x[0]),
        ("weigh", ((1, 0, 0), prices)),
        ("learn", (1, r[1], False, x[1])),
        ("weigh", ((1, 0, 0), prices)),
        ("anticipate", x[2]),
        ("learn", (0, r[0], True, x[0])),
        ("weigh", ((0, 0, 1), prices)),
        ("learn", (0, r[3], False, x[3])),
    ]
    assert [arm.pulls for arm in trace.state.arms] == [2, 1, 0], "what is due after the end is never learned"


def test_pending_decisions_can_be_kept_from_a_policy() -> None:
    Watching.calls.clear()
    simulate(Watching(), table(6, features=2), delays=[2] * 6, mark_pending=False)
    assert not any(what == "anticipate" for what, _ in Watching.calls)
    assert not any(about[2] for what, about in Watching.calls if what == "learn" and isinstance(about, tuple))


def test_given_uniforms_decide_the_draws() -> None:
    trace = simulate(Random(), table(4), uniforms=[0.1, 0.5, 0.9, 0.33])
    assert trace.picks.tolist() == [0, 1, 2, 0]
    assert trace.propensities.tolist() == pytest.approx([1 / 3] * 4)


def test_without_given_uniforms_the_seed_decides() -> None:
    one, again = simulate(EpsilonGreedy(epsilon=0.7, seed=5), table()), simulate(EpsilonGreedy(epsilon=0.7, seed=5), table())
    other = simulate(EpsilonGreedy(epsilon=0.7, seed=6), table())
    assert one.picks.tolist() == again.picks.tolist()
    assert one.picks.tolist() != other.picks.tolist()


def test_greedy_is_the_loop_that_anybody_would_write() -> None:
    world, sums, counts, picks = table(60), np.zeros(3), np.zeros(3), []
    for t in range(60):
        arm = int(counts.argmin()) if counts.min() < 2 else int((sums / counts).argmax())
        sums[arm], counts[arm] = sums[arm] + world.rewards[t, arm], counts[arm] + 1
        picks.append(arm)
    assert simulate(Greedy(initial_pulls=2), world).picks.tolist() == picks


def test_a_progress_bar_advances_in_every_round() -> None:
    seen: list[int] = []
    simulate(OneArm(), table(7), each=seen.append)
    assert seen == list(range(7))


def test_delays_delay_only_what_is_learned() -> None:
    """Sums do not depend on the order: with every outcome back before the end, the state is that of the prompt outcomes."""
    world, policy = table(40, features=3), PakUcb(dim=3, random_features=5, ridge=0.6, initial_pulls=0, exploration=0.0)
    delays = [int(d) for d in np.random.default_rng(8).integers(0, 6, 40)]
    delays = [min(d, 39 - t) for t, d in enumerate(delays)]
    trace = simulate(policy, world, delays=delays)
    counts = np.bincount(trace.picks, minlength=3)
    assert [arm.pulls for arm in trace.state.arms] == counts.tolist()
    z = policy.feature_map(torch.from_numpy(world.features))
    for k, arm in enumerate(trace.state.arms):
        played = torch.from_numpy(trace.picks == k)
        torch.testing.assert_close(arm.whole_gram, z[played].T @ z[played], rtol=1e-12, atol=1e-12)
