"""How to build and feed a policy of every kind: what the contract suites know of a policy beyond the protocol.

A registered policy without an example fails `test_contract.py`. Every hyperparameter needs two settings that differ in it alone
and make a difference, so that none is accepted and ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from bandits.registry import build
from bandits.types import REFERENCE, Observation, Policy, empty

Settings = Mapping[str, Any]

ARMS = 3
DIM, OUTPUT_DIM = 5, 4


def share(g: Generator, arm: int) -> float:
    """A reward in [.1, .9]; later arms are better."""
    return float(np.clip(0.35 + 0.15 * arm + 0.2 * g.standard_normal(), 0.1, 0.9))


def success(g: Generator, arm: int) -> float:
    """0 or 1; later arms succeed more often."""
    return float(g.random() < 0.3 + 0.2 * arm)


def nothing(*_: object) -> np.ndarray:
    """No samples."""
    return np.empty((0, 0))


def samples(g: Generator, arm: int) -> np.ndarray:
    """(3, 4) one outcome's batch; later arms spread more."""
    return g.standard_normal((3, OUTPUT_DIM)) * (0.4 + 0.3 * arm) + 0.2 * arm


def probabilities(g: Generator, arm: int) -> np.ndarray:
    """(2, 4) class probabilities; later arms are surer."""
    return g.dirichlet([2.0 / (1 + arm)] * OUTPUT_DIM, size=2)


def reference(g: Generator) -> np.ndarray:
    """(9, 4) real outputs."""
    return g.standard_normal((9, OUTPUT_DIM)) * 0.8 + 0.1


@dataclass(frozen=True, kw_only=True)
class Example:
    """One configuration.

    differences: hyperparameter -> two settings (beside `settings`) that differ in it alone and must act differently.
    forces_new_arms: a new arm is tried before the rule applies.  rows_alone: after the burn-in, the rows of one call do not count
    as pending for each other.
    """

    kind: str
    settings: Settings = field(default_factory=dict)
    dim: int = 0
    output_dim: int = 0
    reward: Callable[[Generator, int], float] = share
    output: Callable[[Generator, int], np.ndarray] = nothing
    reference: Callable[[Generator], np.ndarray] = nothing
    differences: Mapping[str, tuple[Settings, Settings]] = field(default_factory=dict)
    forces_new_arms: bool = True
    rows_alone: bool = True
    signals: tuple[str, ...] = ("reward",)

    def policy(self, *, seed: int = 3, **changes: Any) -> Policy:
        """With its settings, some of them changed."""
        settings = {**self.settings, **changes}
        return build(self.kind, settings, dim=self.dim, output_dim=self.output_dim, seed=seed, signals=self.signals)

    def coefficients(self, arms: int) -> tuple[tuple[float, ...], ...]:
        """(S, K) factors of the signals; () for the reward alone."""
        if len(self.signals) == 1:
            return ()
        return tuple(tuple((1.0, -0.7)[min(k, 1)] + 0.1 * arm * k for arm in range(arms)) for k in range(len(self.signals)))

    def features(self, g: Generator) -> torch.Tensor:
        """(d,) float64 that fits float32, near one of three centres; empty for policies that take no prompts."""
        if not self.dim:
            return empty()
        centre = np.eye(3, self.dim)[g.integers(3)]
        return torch.from_numpy((centre + 0.2 * g.standard_normal(self.dim)).astype(np.float32).astype(np.float64))

    def seen(self, g: Generator, arm: int, features: torch.Tensor, *, was_pending: bool = False) -> Observation:
        """What came of a decision for an arm. Every third value of the third signal is missing."""
        reward, cost = self.reward(g, arm), float(0.1 + 0.3 * arm + 0.05 * g.random())
        values = (reward, 10.0 * cost, *[math.nan if g.random() < 1 / 3 else 3.0 + float(g.random()) for _ in self.signals[2:]])
        return Observation(
            arm=arm,
            features=features,
            reward=reward,
            cost=cost,
            output=torch.from_numpy(self.output(g, arm)),
            signals=values if len(self.signals) > 1 else (),
            was_pending=was_pending,
        )

    def referenced(self, g: Generator) -> list[Observation]:
        """What must be posted before the first decision."""
        rows = self.reference(g)
        return [Observation(arm=REFERENCE, output=torch.from_numpy(rows))] if len(rows) else []


def _pair(name: str, one: Any, other: Any, **both: Any) -> tuple[Settings, Settings]:
    return {name: one, **both}, {name: other, **both}


def _pairs(**pairs: tuple[Any, ...]) -> dict[str, tuple[Settings, Settings]]:
    """name=(one, other) or name=(one, other, {what both have})."""
    return {name: _pair(name, values[0], values[1], **(values[2] if len(values) > 2 else {})) for name, values in pairs.items()}


EXACT: dict[str, Any] = {"random_features": None}
CHANGES = _pairs(drift=("off", "detect"), forget_half_life=(None, 8))
FLOOR = _pairs(initial_pulls=(1, 4), exploration_floor=(0.0, 0.13))
BURN_IN = FLOOR | CHANGES
FORGETTING: dict[str, Any] = {"forget_half_life": 7}

_PAK = Example(
    kind="pak-ucb",
    settings={"random_features": 6, "ridge": 0.7, "exploration": 0.8},
    dim=DIM,
    differences=BURN_IN
    | _pairs(
        kernel=("rbf", "linear", EXACT),
        bandwidth=(0.6, 1.7),
        scale=(0.5, 1.3, {**EXACT, "kernel": "polynomial"}),
        offset=(0.5, 1.3, {**EXACT, "kernel": "polynomial"}),
        degree=(2, 3, {**EXACT, "kernel": "polynomial"}),
        normalize=(True, False),
        random_features=(6, 7),
        add_linear=(False, True),
        ridge=(0.3, 1.9),
        exploration=(0.2, 1.4),
        prior_mean=(0.2, 0.8),
        max_samples=(4, 8, EXACT),
    ),
)
_DAK = Example(
    kind="dak-ucb",
    settings={"random_features": 5, "label_features": 16, "output_bandwidth": 0.9, "diversity_weight": 0.6},
    dim=DIM,
    output_dim=OUTPUT_DIM,
    output=samples,
)
_MIXTURE = {"bandwidth": 1.1, "random_features": 12, "initial_pulls": 2}
_QUALITY = {"objective": "rke+quality", "quality": "density"}
_MIXTURE_DIFFERENCES = _pairs(
    initial_pulls=(2, 4),
    exploration_floor=(0.0, 0.13),
    kernel=("rbf", "cosine"),
    bandwidth=(0.7, 1.6),
    random_features=(12, 13),
    max_samples=(4, 8, EXACT),
    normalize=(False, True),
    objective=("rke", "kid"),
    quality=("precision", "density", {"objective": "rke+quality"}),
    quality_weight=(0.3, 1.2, _QUALITY),
    neighbours=(2, 4, _QUALITY),
)
_MIXTURE_UCB = Example(
    kind="mixture-ucb", settings=_MIXTURE, output_dim=OUTPUT_DIM, output=samples, reference=reference, rows_alone=False
)
_MIXTURE_GREEDY = Example(kind="mixture-greedy", settings=_MIXTURE, output_dim=OUTPUT_DIM, output=samples, reference=reference)
_PROMPTWISE = Example(kind="promptwise", settings={"cost_weight": 0.3, "max_samples": 8}, dim=DIM, reward=success)


def _but(
    example: Example,
    differences: dict[str, tuple[Settings, Settings]] | None = None,
    signals: tuple[str, ...] = ("reward",),
    **settings: Any,
) -> Example:
    """The same kind in another form."""
    return replace(example, settings={**example.settings, **settings}, differences=differences or {}, signals=signals)


SEVERAL = ("reward", "cost", "latency")


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "auto": (
        Example(kind="auto", dim=DIM, differences=CHANGES | _pairs(context=(True, False), exploration_floor=(0.0, 0.13))),
        Example(kind="auto"),
        Example(kind="auto", dim=DIM, signals=SEVERAL),
        Example(kind="auto", dim=DIM, settings=FORGETTING),
    ),
    "random": (Example(kind="random", forces_new_arms=False),),
    "one-arm": (Example(kind="one-arm", forces_new_arms=False, differences=_pairs(arm=(0, 2))),),
    "greedy": (
        Example(kind="greedy", differences=BURN_IN | _pairs(prior_mean=(0.2, 0.8, {"initial_pulls": 0}))),
        Example(kind="greedy", signals=SEVERAL),
        Example(kind="greedy", signals=SEVERAL, settings=FORGETTING),
    ),
    "epsilon-greedy": (
        Example(
            kind="epsilon-greedy",
            differences=CHANGES | _pairs(initial_pulls=(1, 4), epsilon=(0.1, 0.3), prior_mean=(0.2, 0.8, {"initial_pulls": 0})),
        ),
        Example(kind="epsilon-greedy", signals=SEVERAL),
    ),
    "thompson": (
        Example(
            kind="thompson",
            differences=BURN_IN
            | _pairs(
                posterior=("student", "gaussian"),
                prior_successes=(0.7, 2.5, {"posterior": "beta"}),
                prior_failures=(0.7, 2.5, {"posterior": "beta"}),
                prior_mean=(0.2, 0.8, {"posterior": "gaussian"}),
                prior_deviation=(0.4, 1.5, {"posterior": "gaussian"}),
                noise=(0.2, 0.7, {"posterior": "gaussian"}),
            ),
        ),
        Example(kind="thompson", settings={"posterior": "gaussian"}),
        Example(kind="thompson", settings={"posterior": "beta"}),
        Example(kind="thompson", settings={"posterior": "gaussian"}, signals=SEVERAL),
        Example(kind="thompson", signals=SEVERAL, settings=FORGETTING),
    ),
    "lin-ucb": (
        Example(
            kind="lin-ucb",
            dim=DIM,
            differences=BURN_IN
            | _pairs(normalize=(True, False), ridge=(0.3, 1.9), exploration=(0.2, 1.4), prior_mean=(0.2, 0.8)),
        ),
        Example(kind="lin-ucb", dim=DIM, signals=SEVERAL),
        Example(kind="lin-ucb", dim=DIM, settings=FORGETTING),
    ),
    "pak-ucb": (
        _PAK,
        _but(_PAK, **EXACT),
        _but(_PAK, **EXACT, max_samples=4),
        _but(_PAK, add_linear=True),
        _but(_PAK, signals=SEVERAL),
        _but(_PAK, signals=SEVERAL, **EXACT),
        _but(_PAK, **FORGETTING),
        _but(_PAK, **EXACT, **FORGETTING),
    ),
    "dak-ucb": (
        _but(
            _DAK,
            BURN_IN
            | _pairs(
                diversity=("rke", "jkd"),
                diversity_weight=(0.3, 1.4),
                exploration=(0.2, 1.4),
                diversity_exploration=(0.2, 1.4),
                mixture=(False, True),
                normalise_labels=(False, True),
                prompt_bandwidth=(0.6, 1.7),
                output_bandwidth=(0.6, 1.7),
                label_features=(16, 17),
                ridge=(0.3, 1.9),
                prior_mean=(0.2, 0.8),
                random_features=(5, 6),
                normalize=(True, False),
                max_samples=(4, 8, {"random_features": None, "label_features": None}),
            ),
        ),
        _but(_DAK, mixture=True),
        _but(_DAK, random_features=None, label_features=None, max_samples=6),
        _but(_DAK, signals=SEVERAL),
        _but(_DAK, signals=SEVERAL, mixture=True, random_features=None),
        _but(_DAK, signals=SEVERAL, **FORGETTING),
    ),
    "promptwise": (
        _but(
            _PROMPTWISE,
            _pairs(
                cost_weight=(0.1, 0.9),
                max_attempts=(2, 5),
                stop_optimism=(0.0, 0.5, {"cost_weight": 6.0, "costs": "price"}),
                forced_pulls=(1, 4),
                rule=("ratio", "horizon"),
                retry_discount=(1.0, 0.4),
                success_threshold=(0.5, 1.5),
                costs=("realised", "price"),
                features=("linear", "rff"),
                bias=(True, False),
                bandwidth=(0.6, 1.7, {"features": "rff", "random_features": 6}),
                random_features=(6, 7, {"features": "rff"}),
                normalize=(True, False),
                ridge=(0.3, 1.9),
                exploration=(0.2, 1.4),
                exploration_floor=(0.0, 0.13),
                max_samples=(4, 8),
            ),
        ),
        _but(_PROMPTWISE, features="rff", random_features=4, rule="horizon"),
    ),
    "fd-ucb": (
        Example(
            kind="fd-ucb",
            output_dim=OUTPUT_DIM,
            output=samples,
            reference=reference,
            differences=FLOOR
            | _pairs(
                delta=(0.05, 0.4),
                kappa=(0.5, 1.5),
                threshold=(0.0, 2.0),
                bonus=("released", "rigorous"),
                bonus_scale=(0.2, 1.4),
            ),
        ),
    ),
    "is-ucb": (
        Example(
            kind="is-ucb",
            settings={"bonus": "released"},
            output_dim=OUTPUT_DIM,
            output=probabilities,
            differences=FLOOR | _pairs(delta=(0.05, 0.4), bonus=("released", "kl"), union=(False, True)),
        ),
        Example(kind="is-ucb", output_dim=OUTPUT_DIM, output=probabilities),
    ),
    "mixture-ucb": (
        _but(
            _MIXTURE_UCB,
            _MIXTURE_DIFFERENCES
            | _pairs(
                method=("ogd", "cab"),
                preset=("practical", "theory"),
                delta_l=(0.2, 0.9),
                beta=(0.5, 2.5),
                delta_kappa=(0.1, 0.8),
            ),
        ),
        _but(_MIXTURE_UCB, method="cab"),
        _but(_MIXTURE_UCB, objective="kid"),
        _but(_MIXTURE_UCB, random_features=None, max_samples=8),
    ),
    "mixture-greedy": (
        _but(
            _MIXTURE_GREEDY,
            _MIXTURE_DIFFERENCES
            | _pairs(
                floor=(0.0, 0.2),
                tolerance=(1e-6, 0.1, {"objective": "vendi"}),
                iterations=(1, 30, {"objective": "vendi"}),
                refresh=(1, 4, {"objective": "vendi"}),
            ),
        ),
        _but(_MIXTURE_GREEDY, objective="vendi"),
        _but(_MIXTURE_GREEDY, objective="fid"),
    ),
}
"""kind -> its forms; the first one shows that every hyperparameter makes a difference."""
