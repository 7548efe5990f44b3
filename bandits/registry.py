"""The registry of policies: kind -> class, and `build` from a kind and its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.policies.auto import Auto
from bandits.policies.baselines import EpsilonGreedy, Greedy, OneArm, Random
from bandits.policies.dak_ucb import DakUcb
from bandits.policies.fd_ucb import FdUcb
from bandits.policies.is_ucb import IsUcb
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.mixture import MixtureGreedy, MixtureUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.policies.promptwise import PromptWise
from bandits.policies.thompson import Thompson
from bandits.types import Policy

POLICIES: dict[str, type[Policy]] = {
    policy.kind: policy
    for policy in (
        Auto,
        PakUcb,
        DakUcb,
        PromptWise,
        FdUcb,
        IsUcb,
        MixtureUcb,
        MixtureGreedy,
        LinUcb,
        Thompson,
        EpsilonGreedy,
        Greedy,
        OneArm,
        Random,
    )
}

DEFAULT_POLICY = Auto.kind
"""Of a bandit whose creator names none."""


def build(
    kind: str,
    hyperparameters: Mapping[str, Any],
    *,
    dim: int = 0,
    output_dim: int = 0,
    seed: int = 0,
    signals: tuple[str, ...] = ("reward",),
) -> Policy:
    """The policy of that kind, or `InvalidHyperparameter` naming the field.

    >>> build("pak-ucb", {"exploration": 0.5}, dim=8).exploration
    0.5
    """
    if kind not in POLICIES:
        raise InvalidHyperparameter("kind", f"must be one of {', '.join(POLICIES)}")
    policy = POLICIES[kind]
    names = {item.name for item in declared(policy)}
    for name in hyperparameters:
        if name not in names:
            raise InvalidHyperparameter(name, f"is not a hyperparameter of {kind}; it has {', '.join(sorted(names)) or 'none'}")
    return policy(dim=dim, output_dim=output_dim, seed=seed, signals=signals, **hyperparameters)
