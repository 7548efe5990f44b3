"""PromptWise (arXiv 2505.18901): call models on one prompt until one succeeds, the most promising per cost first, or give up.

    q = sigmoid(z'theta + exploration * width) * retry_discount^(failed calls of this arm in this episode)
    width = sqrt(z'(sum z z' + ridge I)^-1 z)             theta: ridge logistic regression of success on z, one per arm

    ratio     call argmin c / q; stop when l c > q for every arm             (1 - l c / q is worth calling without limit)
    horizon   V_0 = 0, V_k = max(0, max_arm q - l c + (1 - q) V_(k-1)) with k calls left; call the maximizer, stop at 0

(c cost of a call, l cost_weight.) Where a prompt would get no call at all, the width grows with the logarithm of the number of
such prompts: a stop teaches nothing, so that a few failures at the start would be believed for ever.

What is kept: theta has no finite sufficient statistic. An arm keeps its last `max_samples` observations and refits theta exactly,
from where it was, off the request path (`prepare`); of the oldest quarter, once it must go, it keeps the Taylor polynomial of its
likelihood to second order, at the theta of that moment: two sums. Memory and time per call are bounded; up to `max_samples` the
fit *is* the refit of everything, beyond it stays near (docs/policies/promptwise.md has how near).

What a call costs: with `costs: realised` the price counts until the arm's first outcome, from then on the mean of what its calls
really cost, and a new price of the arm, or a price for one decision alone, moves nothing. With `costs: price` it is the price of
this very decision, so both are obeyed at once, and what calls really cost is only reported. An observation does not tell which
price was quoted for it, so an outdated price cannot be distinguished from a realized cost: a client that changes prices and
posts no costs wants `price`.

Departures from paper and released code, each on purpose. The default is `horizon` with a retry discount of .8: the paper's c / q
never leaves an arm that costs nothing, whatever the others promise, and no discount helps at cost 0. Optimism grows while nothing
is called. (`rule: ratio`, `retry_discount: 1` and `stop_optimism: 0` are the paper's.) The width is a square root and starts at
I / ridge (theirs: no root, 1e-6 I, which explores nothing); a bias; exploration is applied once; forced exploration goes by
index, not at random; any reward from `success_threshold` on is a success; free arms, which a ratio cannot tell apart, are
compared by q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bandits import draw
from bandits.errors import InvalidObservation
from bandits.functional import kernels, logistic
from bandits.functional.growing import Rows
from bandits.functional.logistic import Fit, Quadratic
from bandits.hyperparameters import exploration_floor_field, hyper, normalize_field, ridge_field
from bandits.regression.model import check_direction, check_squared, feature_map, stacked
from bandits.regression.ridge import RidgeArm, held_bytes
from bandits.regression.row_widths import RowWidths, in_order
from bandits.types import (
    LAYOUT,
    ArmState,
    Choose,
    Context,
    Need,
    Observation,
    Policy,
    State,
    Weights,
    cached_field,
    layout_field,
)

SMALLEST = 1e-12
"""Success probabilities are kept above this, so that cost / q stays finite."""


@dataclass(frozen=True)
class Derived:
    """The values derived from an arm.

    features, labels: its window, growing in place.  width: the ridge Gram of everything seen.
    """

    features: Rows
    labels: Rows
    width: RidgeArm
    fit: Fit


@dataclass(frozen=True)
class LogisticArm:
    """Sums over everything seen, the last observations themselves, and the quadratic that approximates the older ones."""

    pulls: int
    successes: int
    cost_sum: float
    gram: Tensor  # (p, p) sum z z' of all but the held ones, as in `RidgeArm`
    features: Tensor  # (n, p) z of the last n <= max_samples observations
    labels: Tensor  # (n,) 1 = success
    hessian: Tensor  # (p, p) sum of the curvatures of the forgotten ones, each at the theta of when it was forgotten
    moment: Tensor  # (p,) their linear part
    held: tuple[Tensor, ...] = layout_field(since=2)  # z (p,) of the last ones
    cache: Derived | None = cached_field()

    @staticmethod
    def init(p: int) -> LogisticArm:
        """Nothing seen."""
        square, none = torch.zeros((p, p), dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        return LogisticArm(0, 0, 0.0, square, none.reshape(0, p), none, square.clone(), torch.zeros(p, dtype=torch.float64))

    def update(
        self,
        z: Tensor,
        *,
        success: bool,
        cost: float,
        ridge: float,
        max_samples: int,
        was_pending: bool,
        layout: int = LAYOUT,
    ) -> LogisticArm:
        """One more observation: O(p^2), and a fit whenever the window is full."""
        if len(self.labels) >= max_samples:
            shorter = self.forget(max_samples, ridge=ridge)
            return shorter.update(
                z,
                success=success,
                cost=cost,
                ridge=ridge,
                max_samples=max_samples,
                was_pending=was_pending,
                layout=layout,
            )
        old, label = self.derive(ridge), float(success)
        now = Derived(
            old.features.append(z),
            old.labels.append(torch.tensor(label, dtype=torch.float64)),
            old.width.update(z, 0.0, ridge=ridge, was_pending=was_pending, layout=layout),
            logistic.step(old.fit, z, label),
        )
        return replace(
            self,
            pulls=self.pulls + 1,
            successes=self.successes + success,
            cost_sum=self.cost_sum + cost,
            gram=now.width.gram,
            held=now.width.held,
            features=now.features.tensor,
            labels=now.labels.tensor,
            cache=now,
        )

    def forget(self, max_samples: int, *, ridge: float) -> LogisticArm:
        """The oldest quarter of the window becomes its Taylor polynomial at the theta that fits window and forgotten ones.

        That theta enters the statistic, so it is fitted from stored values alone, never from a warm start; clones, because
        the last bit of a product can depend on how its operands lie in memory. The minimizer and its Hessian stay what they were.
        """
        keep = max_samples - max(1, max_samples // 4)
        features, labels = self.features.clone(), self.labels.clone()
        fit = logistic.minimize(features, labels, prior=self.prior(ridge))
        past = logistic.expand(fit.theta, features[:-keep], labels[:-keep])
        window = Rows(features[-keep:]), Rows(labels[-keep:])
        return replace(
            self,
            features=window[0].tensor,
            labels=window[1].tensor,
            hessian=self.hessian + past.precision,
            moment=self.moment + past.moment,
            cache=Derived(*window, self.derive(ridge).width, fit),
        )

    def add_pending(self, z: Tensor, *, ridge: float) -> LogisticArm:
        """Shrink the width for one pending call."""
        now = self.derive(ridge)
        return replace(self, cache=replace(now, width=now.width.add_pending(z, ridge=ridge)))

    def remove_pending(self, z: Tensor, *, ridge: float) -> LogisticArm:
        """Widen again: the outcome never came."""
        now = self.derive(ridge)
        return replace(self, cache=replace(now, width=now.width.remove_pending(z, ridge=ridge)))

    def prior(self, ridge: float) -> Quadratic:
        """What regularizes the window: the ridge and the forgotten observations."""
        return Quadratic(self.hessian + ridge * torch.eye(len(self.moment), dtype=torch.float64), self.moment.clone())

    def derive(self, ridge: float) -> Derived:
        """The derived values, computed where nothing was carried along (after a restart)."""
        if self.cache is None:
            fit = logistic.minimize(self.features, self.labels, prior=self.prior(ridge))
            width = RidgeArm(self.pulls, self.gram, torch.zeros_like(self.moment), self.held)
            object.__setattr__(self, "cache", Derived(Rows(self.features), Rows(self.labels), width, fit))  # a memo, not a change
        assert self.cache is not None
        return self.cache

    def settle(self, ridge: float) -> Derived:
        """The derived values with theta at the exact minimizer."""
        now = self.derive(ridge)
        if not now.fit.settled:
            now = replace(now, fit=logistic.settle(now.fit, self.features, self.labels, prior=self.prior(ridge)))
            object.__setattr__(self, "cache", now)  # a memo, not a change
        return now


@dataclass(frozen=True, kw_only=True)
class PromptWise(Policy):
    """Cost-aware calls in episodes."""

    kind: ClassVar[str] = "promptwise"
    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward", "cost"})
    summary: ClassVar[str] = (
        "Per prompt, calls until one succeeds, by optimistic success probability per cost; stops when none pays."
    )
    episodic: ClassVar[bool] = True
    not_amendable: ClassVar[frozenset[str]] = frozenset({"reward", "cost"})  # the logistic fit is not linear in its labels

    cost_weight: float = hyper(
        0.05,
        "lambda: what one unit of cost is worth in successes. A call is worth it while lambda * cost <= its success probability.",
        at_least=0,
        unit="successes per unit of price",
        source="PromptWise, arXiv 2505.18901; released test.py 0.05, README 0.001",
        live=True,
    )
    max_attempts: int = hyper(
        5, "Calls per episode at most.", at_least=1, at_most=1000, source="released code, rd_budget", live=True
    )
    forced_pulls: int = hyper(
        1,
        "Calls per arm before the rule applies, least-called first; until then an episode has one call.",
        at_least=0,
        source="PromptWise, arXiv 2505.18901, tau_exp; released class 5, test.py 1",
        live=True,
    )
    rule: Literal["ratio", "horizon"] = hyper(
        "horizon",
        "horizon: optimal for the calls that are left, if retries were independent and the optimistic probabilities true. ratio: "
        "the paper's rule, lowest cost per success, as if calls were unlimited; it never leaves an arm that costs nothing.",
        source="ratio: PromptWise, arXiv 2505.18901; horizon: ours",
        former=("ratio",),
    )
    retry_discount: float = hyper(
        0.8,
        "kappa: factor on an arm's success probability per failed call of it in this episode. 1 = retries are independent, as in "
        "the paper; they rarely are: 0.3 to 0.6 moves on to other arms after a failure.",
        at_least=0,
        at_most=1,
        source="ours, measured on real retries",
        former=(1.0,),
        live=True,
    )
    success_threshold: float = hyper(1.0, "A reward from here on is a success and ends the episode.", unit="reward")
    costs: Literal["realised", "price"] = hyper(
        "realised",
        "What a call is believed to cost. realised: the mean of the costs of the arm's outcomes, the price before the first. "
        "price: the price of this decision; choose it when prices change and no costs are posted.",
    )
    features: Literal["linear", "rff"] = hyper(
        "linear", "What the logistic model sees of the prompt: linear: the vector itself; rff: random features of an rbf kernel."
    )
    bias: bool = hyper(True, "Append a constant 1 to the features; false where the vectors bring their own.")
    bandwidth: float = hyper(1.0, "rff only: sigma of the rbf kernel.", above=0, unit="length of the (normalised) embedding")
    random_features: int = hyper(
        128, "rff only: number D of random frequencies (2D features).", at_least=1, at_most=2048, source="RFF-UCB"
    )
    normalize: bool = normalize_field()
    ridge: float = ridge_field("Regulariser of the logistic fit and of the width.", source="released code, 1/2 |theta|^2")
    exploration: float = hyper(
        1.0, "Multiplier eta of the width, in logits.", at_least=0, source="PromptWise, arXiv 2505.18901", live=True
    )
    stop_optimism: float = hyper(
        0.35,
        "How optimism grows while nothing is called: where a prompt would get no call at all, the width is multiplied by "
        "1 + stop_optimism * sqrt(ln(1 + prompts that got none) / (p (1 - p))), p the estimate. 0: as in the paper, where an "
        "unlucky start can be a stop for ever. sqrt(2) / 4 is half the rate of a UCB of the mean.",
        at_least=0,
        at_most=10,
        source="ours, measured",
        live=True,
    )
    exploration_floor: float = exploration_floor_field()
    max_samples: int = hyper(
        1000,
        "Observations kept per arm for the exact fit; beyond it the oldest quarter is summarised to second order.",
        at_least=4,
        at_most=20_000,
    )

    # -- features ------------------------------------------------------------------------------------------------------

    @cached_property
    def frequencies(self) -> Tensor:
        """(D, d) random frequencies; (0, d) with linear features."""
        count = self.random_features if self.features == "rff" else 0
        return kernels.frequencies(seed=self.seed, count=count, dim=self.dim, bandwidth=self.bandwidth)

    @cached_property
    def fingerprint(self) -> str:
        return kernels.fingerprint(self.frequencies) if self.features == "rff" else ""

    def feature_map(self, x: Tensor) -> Tensor:
        """(..., p) what the regression sees of (..., d)."""
        z = feature_map(x, normalize=self.normalize, frequencies=self.frequencies)
        return torch.cat([z, torch.ones((*z.shape[:-1], 1), dtype=z.dtype)], dim=-1) if self.bias else z

    def check_context(self, context: Context) -> None:
        check_direction(context.features, normalize=self.normalize)
        if not self.normalize and self.features == "linear":
            check_squared(float(self.feature_map(context.features).square().sum()), ridge=self.ridge)

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        if seen.cost < 0.0:
            raise InvalidObservation("cost", "must be at least 0")

    # -- protocol ------------------------------------------------------------------------------------------------------

    def succeeded(self, reward: float) -> bool:
        return reward >= self.success_threshold

    @property
    def size(self) -> int:
        """p, the length of z."""
        return (2 * self.random_features if self.features == "rff" else self.dim) + self.bias

    @property
    def grown_arm_bytes(self) -> int:
        return held_bytes(self.size)

    def init(self) -> LogisticArm:
        return LogisticArm.init(self.size)

    def update(self, state: State, seen: Observation) -> ArmState:
        return state.arms[seen.arm].update(
            self.feature_map(seen.features),
            success=self.succeeded(seen.reward),
            cost=seen.cost,
            ridge=self.ridge,
            max_samples=self.max_samples,
            was_pending=seen.was_pending,
            layout=state.layout,
        )

    def prepare(self, state: State) -> State:
        for arm in state.arms:
            arm.settle(self.ridge)
        return state

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.add_pending(self.feature_map(features), ridge=self.ridge)

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.remove_pending(self.feature_map(features), ridge=self.ridge)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        logits, width = self._score(state, self.feature_map(stacked(contexts)))
        return self._choice(state, [arm.pulls for arm in state.arms], contexts, logits, width)

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        z = self.feature_map(stacked(contexts))
        logits, width = self._score(state, z)
        return in_order(
            contexts,
            pulls=[arm.pulls for arm in state.arms],
            widths=[RowWidths(width, lambda arm: state.arms[arm].settle(self.ridge).width.covariances(z, ridge=self.ridge))],
            rule=lambda pulls, some, rows, narrowed: self._choice(state, pulls, some, logits[rows], narrowed[0]),
            choose=choose,
        )

    def _score(self, state: State, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) logits and (B, K) widths of lifted prompts z (B, p)."""
        now = [arm.settle(self.ridge) for arm in state.arms]
        logits = torch.stack([z @ arm.fit.theta for arm in now], dim=1)
        return logits, torch.stack([arm.width.score(z, ridge=self.ridge)[1] for arm in now], dim=1)

    def _choice(self, state: State, pulls: Sequence[int], contexts: Sequence[Context], logits: Tensor, width: Tensor) -> Weights:
        attempts = torch.tensor([context.attempts for context in contexts], dtype=torch.float64)
        cost = self._cost(state, contexts)
        allowed = draw.allowed_mask(contexts) & (logits + self.exploration * width).isfinite()  # without numbers nothing pays

        def ruled(bonus: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            optimistic = torch.sigmoid(logits + bonus)
            q = (optimistic * self.retry_discount**attempts).clamp_min(SMALLEST)
            if self.rule == "ratio":
                return optimistic, *by_ratio(q, cost, allowed, cost_weight=self.cost_weight)
            left = self.max_attempts - attempts.sum(1)
            return optimistic, *by_horizon(q, self.cost_weight * cost, allowed, left=left)

        optimistic, utility, values = ruled(self.exploration * width)
        skipped = (attempts.sum(1) == 0.0) & (values.sum(1) == 0.0)
        if self.stop_optimism > 0.0 and bool(skipped.any()):
            logs = torch.tensor([math.log1p(context.skipped) for context in contexts], dtype=torch.float64)
            spread = logistic.variance(logits).clamp_min(SMALLEST)
            growth = 1.0 + self.stop_optimism * (logs[:, None] / spread).sqrt()
            grown = ruled(self.exploration * growth * width)
            optimistic, utility, values = (
                torch.where(skipped[:, None], more, plain)
                for more, plain in zip(grown, (optimistic, utility, values), strict=True)
            )
        first, over = self._forced(pulls, contexts)
        values = draw.apply_burn_in_and_floor(
            torch.where(over[:, None], 0.0, values), first, allowed, floor=self.exploration_floor
        )
        estimate = torch.sigmoid(logits)
        return Weights(values, {"estimate": estimate, "bonus": optimistic - estimate, "cost": cost, "utility": utility})

    def _cost(self, state: State, contexts: Sequence[Context]) -> Tensor:
        """(B, K) what a call is believed to cost."""
        prices = torch.tensor([context.prices for context in contexts], dtype=torch.float64)
        if self.costs == "realised":
            for index, arm in enumerate(state.arms):
                if arm.pulls:
                    prices[:, index] = arm.cost_sum / arm.pulls
        return prices

    def _forced(self, pulls: Sequence[int], contexts: Sequence[Context]) -> tuple[list[int], Tensor]:
        """Per context the arm that still lacks forced calls, or -1; and (B,) whether its episode is over whatever the rule says:
        no calls left, or one made while some allowed arm still lacks forced calls (PromptWise C1). As in
        `draw.burn_in_arms`, rows are decided in order, and each forced call counts as pending for the rows after it.
        """
        counts = list(pulls)
        first, over = [], []
        for context in contexts:
            made = sum(context.attempts)
            [lacking] = draw.burn_in_arms(counts, [context], self.forced_pulls)
            over.append(made >= self.max_attempts or (made > 0 and lacking >= 0))
            first.append(-1 if made > 0 else lacking)
            if first[-1] >= 0:
                counts[lacking] += 1
        return first, torch.tensor(over)

    def arms_without_estimate(self, state: State) -> list[int]:
        return [index for index, arm in enumerate(state.arms) if not bool(arm.settle(self.ridge).fit.theta.isfinite().all())]

    def report(self, state: State) -> dict[str, Any]:
        return {
            "arms": [
                {
                    "pulls": arm.pulls,
                    "success_rate": arm.successes / arm.pulls if arm.pulls else None,
                    "mean_cost": arm.cost_sum / arm.pulls if arm.pulls else None,
                    "theta_norm": float(torch.linalg.vector_norm(arm.settle(self.ridge).fit.theta)),
                }
                for arm in state.arms
            ]
        }


def by_ratio(q: Tensor, cost: Tensor, allowed: Tensor, *, cost_weight: float) -> tuple[Tensor, Tensor]:
    """(B, K) utility 1 - l c / q of calling an arm until it succeeds, and (B, K) all weight on the best, zeros if none is >= 0.

    argmax utility = argmin c / q, whatever l, so it is taken in that form: at l = 0 it still prefers cheap arms, where the
    utilities are all 1. Equal ratios, such as those of free arms, are decided by q.
    """
    ratio = torch.where(allowed, cost / q, torch.inf)
    utility = 1.0 - cost_weight * cost / q
    cheapest = allowed & (ratio == ratio.amin(dim=1, keepdim=True))
    values = draw.greedy_weights(q, cheapest)
    return utility, values * (allowed & (utility >= 0.0)).any(dim=1, keepdim=True)


def by_horizon(q: Tensor, price: Tensor, allowed: Tensor, *, left: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) utility q - price + (1 - q) V_(left - 1) of calling an arm now and going on optimally, and (B, K) all weight on the
    best, zeros where none is positive. price: (B, K) l c.  left: (B,) calls left, this one included.
    """
    chance, paid, usable, remaining = q.numpy(), price.numpy(), allowed.numpy(), left.numpy()[:, None]
    found = np.full(chance.shape, np.nan)  # no calls left, nothing to score
    value = np.zeros((len(chance), 1))
    for k in range(1, int(remaining.max()) + 1):
        stage = chance - paid + (1.0 - chance) * value
        better = np.maximum(np.where(usable, stage, -np.inf).max(axis=1, keepdims=True), 0.0)
        is_settled = bool((better == value).all())  # then every later stage is this one: a thousand calls cost as few dozens
        found = np.where(remaining >= k if is_settled else remaining == k, stage, found)
        if is_settled:
            break
        value = better
    utility = torch.from_numpy(found)
    return utility, draw.greedy_weights(utility, allowed) * (allowed & (utility > 0.0)).any(dim=1, keepdim=True)
