"""Optimism over one regression per arm: the protocol that PAK-UCB and LinUCB share. They differ in what the regression sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bandits import draw
from bandits.errors import InvalidContext, InvalidHyperparameter
from bandits.hyperparameters import unit_scale
from bandits.regression.model import DeviceScorer, Regression, check_direction, stacked
from bandits.regression.row_widths import in_order
from bandits.types import ArmState, Choose, Context, Need, Observation, Policy, State, Weights


class RegressionUcb(Policy):
    """Base of the UCB policies: play argmax mean + exploration * width. A subclass declares the
    hyperparameters and its regression.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features", "reward"})
    arms_independent: ClassVar[bool] = True

    normalize: bool
    exploration: float
    prior_mean: float
    initial_pulls: int
    exploration_floor: float

    @property
    @abstractmethod
    def regression(self) -> Regression:
        """Of r - prior_mean on the prompt."""

    @property
    def reward_scale(self) -> tuple[float, float] | None:
        return unit_scale(self.prior_mean)

    def arms_without_estimate(self, state: State) -> list[int]:
        return [index for index, arm in enumerate(state.arms) if not self.regression.is_finite(arm)]

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
        return self.regression.init()

    def update(self, state: State, seen: Observation) -> ArmState:
        target = seen.reward - self.prior_mean
        return self.regression.update(state.arms[seen.arm], seen.features, target, was_pending=seen.was_pending)

    def update_many(self, state: State, seen: Sequence[Observation]) -> ArmState:
        return self.regression.update_many(
            state.arms[seen[0].arm],
            [one.features for one in seen],
            [one.reward - self.prior_mean for one in seen],
            was_pending=[one.was_pending for one in seen],
        )

    def prepare(self, state: State) -> State:
        self.regression.derive(state.arms)
        return state

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return self.regression.add_pending(arm, features)

    def add_pending_many(self, arm: ArmState, features: Sequence[Tensor]) -> ArmState:
        return self.regression.add_pending_many(arm, features)

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return self.regression.remove_pending(arm, features)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        mean, width = self._score(state, self.regression.feature_map(stacked(contexts)))
        return self._best([arm.pulls for arm in state.arms], contexts, mean, width)

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        z = self.regression.feature_map(stacked(contexts))
        mean, width = self._score(state, z)
        return in_order(
            contexts,
            pulls=[arm.pulls for arm in state.arms],
            widths=width,
            covariances=lambda arm: self.regression.covariances(state.arms[arm], z),
            rule=lambda pulls, some, rows, narrowed: self._best(pulls, some, mean[rows], narrowed),
            choose=choose,
        )

    def _score(self, state: State, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) means and (B, K) widths of lifted prompts z (B, p)."""
        # Most bandits have no device, and asking whether None implements a protocol takes 10 us.
        device = state.cache if state.cache is not None and isinstance(state.cache, DeviceScorer) else None
        mean, width = self.regression.score(state.arms, z, device)
        return mean + self.prior_mean, width

    def _best(self, pulls: Sequence[int], contexts: Sequence[Context], mean: Tensor, width: Tensor) -> Weights:
        bonus = self.exploration * width
        allowed = draw.allowed_mask(contexts)
        first = draw.burn_in_arms(pulls, contexts, self.initial_pulls)
        values = draw.apply_burn_in_and_floor(
            draw.greedy_weights(mean + bonus, allowed), first, allowed, floor=self.exploration_floor
        )
        return Weights(values, {"estimate": mean, "bonus": bonus})
