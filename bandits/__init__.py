"""Bandit policies for choosing among generative models: pure functions of tensors, without HTTP, clock or global randomness.

    policy = bandits.build("pak-ucb", {}, dim=8)
    state = bandits.state.start(policy, arms=2)
    context = bandits.Context(features=x, allowed=(True, True))
    arm = bandits.draw.draw(policy.weights(state, [context]).values[0], key="decision 1").arm
    state = bandits.state.fold(policy, state, bandits.Observation(arm=arm, features=x, reward=1.0))

The names in `__all__` are the public interface. They are imported on first use, so that `bandits.errors` alone needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bandits import draw, state
    from bandits.episodes import EpisodeTrace, play_episodes
    from bandits.errors import (
        BanditError,
        CorruptState,
        FieldError,
        InvalidContext,
        InvalidHyperparameter,
        InvalidObservation,
        NotPositiveDefinite,
        ReferenceMissing,
    )
    from bandits.functional.diversity import feature_spectrum, gram_spectrum, kernel_distance, rke, truncate_spectrum, vendi
    from bandits.functional.joint_diversity import (
        conditional_rke,
        conditional_vendi,
        information_vendi,
        inverse_joint_rke,
        joint_kernel_distance,
        joint_rke,
        label_error,
    )
    from bandits.registry import POLICIES, build
    from bandits.simulation import Trace, World, simulate
    from bandits.types import REFERENCE, Context, Moments, Observation, Policy, State, Weights

__all__ = [
    "POLICIES",
    "REFERENCE",
    "BanditError",
    "Context",
    "CorruptState",
    "EpisodeTrace",
    "FieldError",
    "InvalidContext",
    "InvalidHyperparameter",
    "InvalidObservation",
    "Moments",
    "NotPositiveDefinite",
    "Observation",
    "Policy",
    "ReferenceMissing",
    "State",
    "Trace",
    "Weights",
    "World",
    "build",
    "conditional_rke",
    "conditional_vendi",
    "draw",
    "feature_spectrum",
    "gram_spectrum",
    "information_vendi",
    "inverse_joint_rke",
    "joint_kernel_distance",
    "joint_rke",
    "kernel_distance",
    "label_error",
    "play_episodes",
    "rke",
    "simulate",
    "state",
    "truncate_spectrum",
    "vendi",
]

_HOMES = {
    "bandits.episodes": ("EpisodeTrace", "play_episodes"),
    "bandits.errors": (
        "BanditError",
        "CorruptState",
        "FieldError",
        "InvalidContext",
        "InvalidHyperparameter",
        "InvalidObservation",
        "NotPositiveDefinite",
        "ReferenceMissing",
    ),
    "bandits.functional.diversity": (
        "feature_spectrum",
        "gram_spectrum",
        "kernel_distance",
        "rke",
        "truncate_spectrum",
        "vendi",
    ),
    "bandits.functional.joint_diversity": (
        "conditional_rke",
        "conditional_vendi",
        "information_vendi",
        "inverse_joint_rke",
        "joint_kernel_distance",
        "joint_rke",
        "label_error",
    ),
    "bandits.registry": ("POLICIES", "build"),
    "bandits.simulation": ("Trace", "World", "simulate"),
    "bandits.types": ("REFERENCE", "Context", "Moments", "Observation", "Policy", "State", "Weights"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("draw", "state"):
        return importlib.import_module(f"bandits.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
