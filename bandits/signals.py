"""Several signals in a policy whose rule is made for one: a statistic of each, weighed at the moment of the decision.

    mean = constants + sum_k coefficient_k mean_k        width^2 = sum_k coefficient_k^2 width_k^2

With one signal the statistic of an arm is the policy's own, so that its bytes and digests are those of a bandit that knows of no
signals. Missing values are not learned: each statistic has the outcomes that carry its signal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandits.types import Amendment, ArmState, Context, Observation


@dataclass(frozen=True)
class SignalArm:
    """The statistics of one arm, one per signal. pulls: outcomes, whichever signals they carried."""

    pulls: int
    signals: tuple[ArmState, ...]


def init(make: Callable[[int], ArmState], count: int) -> ArmState:
    """The statistic of an arm that has seen nothing. make: that of signal k."""
    return make(0) if count == 1 else SignalArm(0, tuple(make(k) for k in range(count)))


def parts(arm: ArmState) -> tuple[ArmState, ...]:
    """The statistic of each signal."""
    return arm.signals if isinstance(arm, SignalArm) else (arm,)


def part(arms: Sequence[ArmState], k: int) -> list[ArmState]:
    """The statistic of signal k of each arm."""
    return [parts(arm)[k] for arm in arms]


def change(arm: ArmState, by: Callable[[ArmState], ArmState]) -> ArmState:
    """With the statistic of every signal changed."""
    return replace(arm, signals=tuple(by(one) for one in arm.signals)) if isinstance(arm, SignalArm) else by(arm)


def merge(by: Callable[[ArmState, ArmState], ArmState], one: ArmState, other: ArmState) -> ArmState:
    """`other`, with the statistic of every signal made of that of both."""
    if not isinstance(other, SignalArm):
        return by(one, other)
    return replace(other, signals=tuple(map(by, one.signals, other.signals)))


def update(
    arm: ArmState,
    seen: Observation,
    learn: Callable[[int, ArmState, float], ArmState],
    *,
    lack: Callable[[ArmState], ArmState] = lambda one: one,
) -> ArmState:
    """With one more outcome. learn: (k, its statistic, its value) -> the new one.  lack: of a signal that the outcome lacks."""
    if not isinstance(arm, SignalArm):
        return learn(0, arm, seen.signals[0] if seen.signals else seen.reward)
    values = seen.values(len(arm.signals))
    learned = (
        lack(one) if math.isnan(value) else learn(k, one, value)
        for k, (one, value) in enumerate(zip(arm.signals, values, strict=True))
    )
    return SignalArm(arm.pulls + 1, tuple(learned))


def amend(
    arm: ArmState,
    change: Amendment,
    *,
    learn: Callable[[int, ArmState, float], ArmState],
    correct: Callable[[int, ArmState, float, float], ArmState],
) -> ArmState:
    """With new values. learn: (k, its statistic, value) of a signal that was missing.  correct: (k, its statistic, old, new)."""

    def amended(k: int, one: ArmState) -> ArmState:
        old, new = change.old[k], change.new[k]
        if math.isnan(new):
            return one
        return learn(k, one, new) if math.isnan(old) else correct(k, one, old, new)

    if not isinstance(arm, SignalArm):
        return amended(0, arm)
    return SignalArm(arm.pulls, tuple(amended(k, one) for k, one in enumerate(arm.signals)))


def weigh(contexts: Sequence[Context], means: Sequence[Tensor], widths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, K) mean and (B, K) width of what is maximized, of those of each signal; an empty table where there are no widths.

    A signal that does not count may have no estimate: a factor of 0 makes even NaN 0.
    """
    if len(means) == 1 and not any(context.coefficients or context.constants for context in contexts):
        return means[0], widths[0] if widths else means[0].new_zeros(0)
    rows, arms = means[0].shape
    usual = ((1.0,) * arms, *[(0.0,) * arms] * (len(means) - 1))
    factors = torch.tensor([context.coefficients or usual for context in contexts], dtype=torch.float64)  # (B, S, K)
    mean = torch.tensor([context.constants or (0.0,) * arms for context in contexts], dtype=torch.float64)
    squared = torch.zeros((rows, arms), dtype=torch.float64)
    for k, factor in enumerate(factors.unbind(dim=1)):
        mean = mean + torch.where(factor == 0.0, 0.0, factor * means[k])
        if widths:
            squared = squared + torch.where(factor == 0.0, 0.0, (factor * widths[k]).square())
    return mean, squared.sqrt() if widths else squared.new_zeros(0)


def tables(names: Sequence[str], means: Sequence[Tensor]) -> dict[str, Tensor]:
    """What `Weights.scores` shows of several signals: the (B, K) means of each."""
    return {f"signals.{name}": mean for name, mean in zip(names, means, strict=True)} if len(names) > 1 else {}
