"""Distributions over arms from scores, and the keyed draw of an arm from a distribution.

The only place where chance enters; it is keyed, so that every draw can be repeated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bandits.types import Context, Weights

STOP = -1


class Draw(NamedTuple):
    """An arm that was drawn.

    arm: index, or `STOP`.  propensity: the probability with which this arm was drawn (1.0 for a stop).
    """

    arm: int
    propensity: float


def burn_in_arms(pulls: Sequence[int], contexts: Sequence[Context], initial_pulls: int) -> list[int]:
    """Per context the arm that still lacks its first pulls, or -1 when every allowed arm has them.

    The least-pulled arm comes first, pending decisions and failed calls counted, ties to the lowest index. The rows of one call
    are taken as decided in order: each counts as pending for the rows after it.
    """
    if min(pulls) >= initial_pulls:
        return [-1] * len(contexts)
    chosen = []
    extra = [0] * len(pulls)
    for context in contexts:
        failed = context.failed or (0,) * len(pulls)
        count, arm = min(
            (pulls[k] + context.pending[k] + failed[k] + extra[k], k)
            for k, is_allowed in enumerate(context.allowed)
            if is_allowed
        )
        if count < initial_pulls:
            extra[arm] += 1
            chosen.append(arm)
        else:
            chosen.append(-1)
    return chosen


def allowed_mask(contexts: Sequence[Context]) -> Tensor:
    """(B, K) bool."""
    return torch.tensor([context.allowed for context in contexts])


def greedy_weights(scores: Tensor, allowed: Tensor) -> Tensor:
    """(B, K) all weight on the allowed arm of highest score (B, K); ties go to the lowest index, as NumPy's argmax promises.

    A score that is not a finite number carries no information, and its arm is not chosen. Where no allowed arm has a
    finite one, each has the same weight, and the propensity says so.
    """
    usable = np.isfinite(scores.numpy()) & allowed.numpy()
    chosen = np.where(usable, scores.numpy(), -np.inf).argmax(axis=1)
    rows, values = np.arange(len(chosen)), np.zeros(scores.shape)
    values[rows, chosen] = 1.0
    found = torch.from_numpy(values)
    if not usable[rows, chosen].all():
        lost = torch.from_numpy(~usable[rows, chosen])[:, None]
        found = torch.where(lost, uniform_over(allowed), found)
    return found


def spread_best(
    scores: Tensor,
    *,
    allowed: Tensor,
    pending: Sequence[Sequence[int]],
    pulls: Sequence[int],
    first: Sequence[int],
) -> Tensor:
    """(B,) per row the allowed arm of highest score (K,), one score for all rows; +inf = an arm that must be tried.

    Ties go to the arm with the fewest decisions under way: those pending, and those of the rows before it in this call (`first`:
    the burn-in's choice for the rows that have one, else -1). Among arms that must be tried, pulls count too. Then to the lowest
    index.
    """
    scores = torch.where(scores.isnan(), -torch.inf, scores)  # what is no number says nothing: chosen only where no other is left
    masked = torch.where(allowed, scores, -torch.inf)
    tied = (masked == masked.amax(dim=1, keepdim=True)) & allowed
    chosen = tied.to(torch.uint8).argmax(dim=1)
    if int(tied.sum()) == len(tied):
        return chosen
    extra = [0] * len(pulls)
    for row, arm in enumerate(first):
        if arm < 0:
            best = tied[row].nonzero()[:, 0].tolist()
            base = [pulls[k] if scores[k] == torch.inf else 0 for k in best]
            _, arm = min((count + pending[row][k] + extra[k], k) for count, k in zip(base, best, strict=True))  # noqa: PLW2901
            chosen[row] = arm
        extra[arm] += 1
    return chosen


def one_hot(arms_chosen: Tensor, *, arms: int) -> Tensor:
    """(B, K) rows with a single 1."""
    return torch.nn.functional.one_hot(arms_chosen, arms).to(torch.float64)


def uniform_over(allowed: Tensor) -> Tensor:
    """(B, K) the same weight on every allowed arm; zeros where none is allowed."""
    return allowed.to(torch.float64) / allowed.sum(dim=1, keepdim=True).clamp_min(1)


def apply_burn_in_and_floor(values: Tensor, first: Sequence[int], allowed: Tensor, *, floor: float) -> Tensor:
    """(B, K) the rule's distribution, with burn-in rows replaced and the exploration floor mixed in. A stop stays a stop; where
    the rule's numbers are no numbers, every allowed arm has the same weight.
    """
    total = values.sum(dim=1, keepdim=True)
    if not bool(total.isfinite().all()):
        values = torch.where(total.isfinite(), values, uniform_over(allowed))
    if any(arm >= 0 for arm in first):
        values = values.clone()
        for row, arm in enumerate(first):
            if arm >= 0:
                values[row] = 0.0
                values[row, arm] = 1.0
    if floor > 0.0:
        mixed = (1.0 - floor) * values + floor * uniform_over(allowed)
        values = torch.where(values.sum(dim=1, keepdim=True) > 0.0, mixed, values)
    return values


def optimistic_weights(
    index: Tensor,
    contexts: Sequence[Context],
    *,
    estimate: Tensor,
    bonus: Tensor,
    pulls: Sequence[int],
    initial_pulls: int,
    floor: float,
) -> Weights:
    """The arm of highest index (K,), the same for every prompt, after burn-in and floor; see `spread_best`.

    estimate, bonus: (K,) the scores behind the index.  pulls: per arm.
    """
    allowed = allowed_mask(contexts)
    first = burn_in_arms(pulls, contexts, initial_pulls)
    chosen = spread_best(index, allowed=allowed, pending=[context.pending for context in contexts], pulls=pulls, first=first)
    values = apply_burn_in_and_floor(one_hot(chosen, arms=len(pulls)), first, allowed, floor=floor)
    rows = (len(contexts), -1)
    return Weights(
        values, {"estimate": estimate.expand(rows).clone(), "bonus": bonus.expand(rows).clone()}, assumed=chosen.tolist()
    )


def uniform(key: str) -> float:
    """A number in [0, 1) that depends on the key alone: the top 53 bits of its sha256."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11) * 2.0**-53


def draw(weights: Tensor | Sequence[float], key: str) -> Draw:
    """Turn one distribution (K,) into an arm by inverse CDF; all zeros means stop.

    >>> draw(torch.tensor([0.0, 1.0, 0.0]), "any key")
    Draw(arm=1, propensity=1.0)
    >>> draw(torch.zeros(3), "any key")
    Draw(arm=-1, propensity=1.0)
    """
    return draw_at(weights, uniform(key))


def draw_at(weights: Tensor | Sequence[float], u: float) -> Draw:
    """The first arm whose cumulative weight exceeds `u`, for u in [0, 1)."""
    values: Sequence[float] = weights.tolist() if isinstance(weights, Tensor) else weights
    total = sum(values)
    if total == 0.0:
        return Draw(STOP, 1.0)
    cumulative = 0.0
    last = STOP
    for arm, weight in enumerate(values):
        if weight > 0.0:
            cumulative += weight
            last = arm
            if cumulative > u * total:
                break
    return Draw(last, values[last])
