"""From a validated request to the first event of a log: everything resolved, everything refused that could fail later."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bandits import state as states
from bandits.errors import BanditError, InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.registry import POLICIES, build
from bandits.types import Context, Observation, Policy, empty
from service.embedders import registry
from service.embedders.base import EmbedderUnavailable, UnknownEmbedder
from service.errors import invalid
from service.events import Created, NewArm
from service.schemas import BanditBody, EmbedderSpec

PROBABILITIES = "probabilities"
COPIES = 3
"""What is derived from the sums takes about twice their memory again: an inverse, and one that counts pending decisions."""


def created_event(
    name: str, tenant: str, body: BanditBody, *, default_timeout_s: float, max_bytes: int, clock: Callable[[], datetime]
) -> Created:
    """The event, or a 422 that names the field. Blocks: random frequencies are drawn, and the policy is tried once."""
    prompt, prompt_dim, prompt_version = _embedder(body.prompt, "prompt")
    output, output_dim, output_version = _embedder(body.output, "output")
    kind = body.policy.kind
    hyperparameters = {item.name: getattr(body.policy, item.name) for item in declared(POLICIES[kind])}
    seed = secrets.randbits(32) if body.seed is None else body.seed
    try:
        policy = build(kind, hyperparameters, dim=prompt_dim, output_dim=output_dim, seed=seed)
    except InvalidHyperparameter as error:
        raise invalid(f"policy.{error.field}", error.message) from error
    if policy.contextual and not prompt:
        raise invalid("prompt", f'{kind} decides by the prompt; say how prompts are embedded, e.g. {{"dim": 384}}')
    if "output" in policy.needs and not output:
        raise invalid("output", f'{kind} learns from outputs; say how they are embedded, e.g. {{"dim": 512}}')
    if "output" in policy.needs and (output == PROBABILITIES) != (policy.outputs == "probabilities"):
        expected = PROBABILITIES if policy.outputs == "probabilities" else "vector"
        raise invalid("output.embedder", f"{kind} learns from {policy.outputs}; set {expected!r} and the length as `dim`")
    if "output" in policy.needs and body.reward.default is not None:
        raise invalid("reward.default", f"{kind} learns from outputs; a reward cannot stand for a missing one")
    _check_size(policy, hyperparameters, arms=len(body.arms), max_bytes=max_bytes)
    _rehearse(policy)
    return Created(
        at=clock(),
        bandit=name,
        tenant=tenant,
        request=body.request(),
        policy=kind,
        hyperparameters=hyperparameters,
        arms=[NewArm(name=arm.name, price=arm.price, metadata=arm.metadata) for arm in body.arms],
        seed=seed,
        fingerprint=policy.fingerprint,
        dim=prompt_dim,
        prompt_embedder=prompt,
        prompt_version=prompt_version,
        output_dim=output_dim,
        output_embedder=output,
        output_version=output_version,
        reward_source=body.reward.source,
        default_reward=body.reward.default,
        timeout_s=default_timeout_s if body.reward.timeout_s is None else body.reward.timeout_s,
    )


def _check_size(policy: Policy, hyperparameters: dict[str, Any], *, arms: int, max_bytes: int) -> None:
    """Refuse a bandit that would not fit; its size is known without allocating it."""
    with torch.device("meta"):
        of_an_arm, of_the_reference = (
            sum(tensor.nbytes for tensor in _tensors(statistic)) for statistic in (policy.blank(), policy.blank_reference())
        )
    if "reference" in policy.needs:  # second moments of the outputs, empty before the first
        of_an_arm, of_the_reference = of_an_arm + 8 * policy.output_dim**2, of_the_reference + 8 * policy.output_dim**2
    frequencies = 8 * policy.dim * (hyperparameters.get("random_features") or 0)
    size = COPIES * (max(arms, 1) * of_an_arm + of_the_reference) + frequencies
    if size > max_bytes:
        raise invalid(
            "policy",
            f"with {arms} arms this takes about {size / 2**30:.1f} GiB of memory, the server allows {max_bytes / 2**30:.1f}: "
            "use fewer random features, shorter vectors or fewer arms, or raise NEXTARM_MAX_STATE_BYTES",
        )


def _tensors(statistic: Any) -> Iterator[Tensor]:
    for item in fields(statistic):
        value = getattr(statistic, item.name)
        if isinstance(value, Tensor):
            yield value


def _rehearse(policy: Policy) -> None:
    """Decide, learn and decide once, on nothing that is kept: hyperparameters that are legal one by one can still overflow
    together, and a bandit that answers NaN must not come to be. Outputs and references have shapes that only their policy
    knows; policies that take them are not tried.
    """
    if policy.needs - {"features", "reward", "cost"}:
        return
    features = torch.full((policy.dim,), policy.dim**-0.5, dtype=torch.float64) if policy.contextual else empty()
    context = Context(allowed=(True,), features=features, prices=(1.0,))
    try:
        with np.errstate(all="ignore"):
            state = states.start(policy, arms=1)
            for _ in range(2):
                weights = policy.weights(state, [context])
                state = policy.prepare(states.fold(policy, state, Observation(arm=0, features=features, reward=0.5)))
        numbers = [float(weights.values.sum()), *(float(score[0, 0]) for score in weights.scores.values())]
    except (ArithmeticError, ValueError, RuntimeError, BanditError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise invalid("policy", "with these hyperparameters the numbers overflow; choose less extreme ones")


def _embedder(spec: EmbedderSpec | None, path: str) -> tuple[str, int, str]:
    """(name, dim, version); ("", 0, "") where the bandit has none."""
    if spec is None:
        return "", 0, ""
    if path == "output" and spec.embedder == PROBABILITIES:
        known_dim, version = None, ""
    else:
        try:
            known = registry.spec(spec.embedder)
            known.check_available()
            known_dim, version = known.dim, known.version()
        except UnknownEmbedder as error:
            raise invalid(f"{path}.embedder", f"must be one of {', '.join(registry.EMBEDDERS)}") from error
        except EmbedderUnavailable as error:
            raise invalid(f"{path}.embedder", str(error)) from error
    if known_dim is None:
        if spec.dim is None:
            raise invalid(f"{path}.dim", f"is needed with {spec.embedder!r}: how many numbers does one of your vectors have?")
        return spec.embedder, spec.dim, version
    if spec.dim not in (None, known_dim):
        raise invalid(f"{path}.dim", f"{spec.embedder!r} gives {known_dim} numbers; leave dim out, or set {known_dim}")
    return spec.embedder, known_dim, version
