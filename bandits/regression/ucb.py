"""Optimism over one regression per arm: the protocol that PAK-UCB and LinUCB share. They differ in what the regression sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from bandits import draw, signals
from bandits.errors import InvalidContext, InvalidHyperparameter
from bandits.hyperparameters import unit_scale
from bandits.regression.model import DeviceScorer, Regression, check_direction, stacked
from bandits.regression.row_widths import RowWidths, in_order
from bandits.types import Amendment, ArmState, Choose, Context, Need, Observation, Policy, State, Weights


class RegressionUcb(Policy):
    """Base of the UCB policies: play argmax mean + exploration * width. A subclass declares the
    hyperparameters and its regression.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward"})
    weighs_signals: ClassVar[bool] = True

    normalize: bool
    exploration: float
    prior_mean: float
    initial_pulls: int
    exploration_floor: float

    @property
    def arms_independent(self) -> bool:
        return self.forget_half_life is None

    @property
    def grown_arm_bytes(self) -> int:
        return len(self.signals) * self.regression.grown_bytes

    @property
    def drops_outcomes(self) -> bool:
        return super().drops_outcomes or self.regression.kernel is not None

    @property
    @abstractmethod
    def regression(self) -> Regression:
        """Of r - prior_mean on the prompt."""

    @property
    def reward_scale(self) -> tuple[float, float] | None:
        return unit_scale(self.prior_mean)

    def arms_without_estimate(self, state: State) -> list[int]:
        return [index for index, arm in enumerate(state.arms) if not all(map(self.regression.is_finite, signals.parts(arm)))]

    def check_new(self) -> None:
        super().check_new()
        unit = torch.full((self.dim,), max(self.dim, 1) ** -0.5, dtype=torch.float64)
        try:
            self.regression.check(unit)
        except InvalidContext as error:
            raise InvalidHyperparameter(
                "ridge", f"is too small for this kernel: a prompt of length one {error.message}"
            ) from error

    def check_context(self, context: Context) -> None:
        check_direction(context.features, normalize=self.normalize)
        if not self.normalize:  # else every prompt has the length that was looked at when the bandit was created
            self.regression.check(context.features)

    def init(self) -> ArmState:
        return signals.init(lambda _: self.regression.init(), len(self.signals))

    def _prior(self, signal: int) -> float:
        """What an unseen region is believed to be worth; signals other than the reward start at 0."""
        return self.prior_mean if signal == 0 else 0.0

    def update(self, state: State, seen: Observation) -> ArmState:
        def learn(signal: int, arm: ArmState, value: float) -> ArmState:
            target = value - self._prior(signal)
            return self.regression.update(
                arm, seen.features, target, was_pending=seen.was_pending, offset=seen.offset, layout=state.layout
            )

        def lack(arm: ArmState) -> ArmState:
            return self.regression.remove_pending(arm, seen.features) if seen.was_pending else arm

        return signals.update(state.arms[seen.arm], seen, learn, lack=lack)

    def amend_arm(self, state: State, change: Amendment) -> ArmState:
        def learn(k: int, arm: ArmState, value: float) -> ArmState:
            target = value - self._prior(k)
            return self.regression.update(
                arm, change.features, target, was_pending=False, offset=change.offset, layout=state.layout
            )

        def correct(k: int, arm: ArmState, old: float, new: float) -> ArmState:
            targets = old - self._prior(k), new - self._prior(k)
            return self.regression.correct(arm, change.features, *targets, learned=change.learned[k])

        return signals.amend(state.arms[change.arm], change, learn=learn, correct=correct)

    def update_many(self, state: State, seen: Sequence[Observation]) -> ArmState:
        if len(self.signals) > 1:
            return super().update_many(state, seen)
        return self.regression.update_many(
            state.arms[seen[0].arm],
            [one.features for one in seen],
            [(one.signals[0] if one.signals else one.reward) - self.prior_mean for one in seen],
            was_pending=[one.was_pending for one in seen],
            offsets=[one.offset for one in seen],
            layout=state.layout,
        )

    def prepare(self, state: State) -> State:
        self.regression.derive([one for arm in state.arms for one in signals.parts(arm)])
        return state

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return signals.change(arm, lambda one: self.regression.add_pending(one, features))

    def add_pending_many(self, arm: ArmState, features: Sequence[Tensor]) -> ArmState:
        return signals.change(arm, lambda one: self.regression.add_pending_many(one, features))

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return signals.change(arm, lambda one: self.regression.remove_pending(one, features))

    def carry_pending(self, old: ArmState, new: ArmState) -> ArmState:
        return signals.merge(self.regression.carry_pending, old, new)

    def surprise(self, state: State, seen: Observation) -> float | None:
        arm = signals.parts(state.arms[seen.arm])[0]
        return self.regression.surprise(arm, seen.features, seen.reward - self.prior_mean)

    def pack_derived(self, state: State) -> bytes:
        return self.regression.pack_offsets([one for arm in (*state.arms, *state.recent) for one in signals.parts(arm)])

    def unpack_derived(self, state: State, data: bytes) -> State:
        parts = iter(
            self.regression.unpack_offsets([one for arm in (*state.arms, *state.recent) for one in signals.parts(arm)], data)
        )
        arms, recent = (tuple(signals.change(arm, lambda _: next(parts)) for arm in some) for some in (state.arms, state.recent))
        return replace(state, arms=arms, recent=recent)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        means, widths = self._score(state, self.regression.feature_map(stacked(contexts)))
        return self._best([arm.pulls for arm in state.arms], contexts, means, widths)

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        z = self.regression.feature_map(stacked(contexts))
        means, widths = self._score(state, z)

        def narrowing(signal: int, width: Tensor) -> RowWidths:
            return RowWidths(width, lambda arm: self.regression.covariances(signals.parts(state.arms[arm])[signal], z))

        return in_order(
            contexts,
            pulls=[arm.pulls for arm in state.arms],
            widths=[narrowing(signal, width) for signal, width in enumerate(widths)],
            rule=lambda pulls, some, rows, narrowed: self._best(pulls, some, [mean[rows] for mean in means], narrowed),
            choose=choose,
        )

    def _score(self, state: State, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per signal, (B, K) means and (B, K) widths of lifted prompts z (B, p)."""
        # Most bandits have no device, and asking whether None implements a protocol takes 10 us.
        device = state.cache if state.cache is not None and isinstance(state.cache, DeviceScorer) else None
        scored = [self.regression.score(signals.part(state.arms, k), z, device) for k in range(len(self.signals))]
        return [mean + self._prior(k) for k, (mean, _) in enumerate(scored)], [width for _, width in scored]

    def _best(self, pulls: Sequence[int], contexts: Sequence[Context], means: list[Tensor], widths: list[Tensor]) -> Weights:
        mean, width = signals.weigh(contexts, means, widths)
        bonus = self.exploration * width
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in_arms(pulls, contexts, self.initial_pulls)
        values = draw.apply_burn_in_and_floor(
            draw.greedy_weights(mean + bonus, allowed), first, allowed, floor=self.exploration_floor
        )
        return Weights(values, {"estimate": mean, "bonus": bonus} | signals.tables(self.signals, means))
