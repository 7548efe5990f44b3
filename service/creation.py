"""From a validated request to the first event of a log: everything resolved, everything refused that could fail later."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.registry import POLICIES, build
from service.embedders import registry
from service.embedders.base import EmbedderUnavailable, UnknownEmbedder
from service.errors import invalid
from service.events import Created, NewArm
from service.schemas import BanditBody, EmbedderSpec

PROBABILITIES = "probabilities"


def created_event(
    name: str, tenant: str, body: BanditBody, *, default_timeout_s: float, clock: Callable[[], datetime]
) -> Created:
    """The event, or a 422 that names the field."""
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
    if "output" in policy.needs and body.reward.default is not None:
        raise invalid("reward.default", f"{kind} learns from outputs; a reward cannot stand for a missing one")
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
        except (UnknownEmbedder, EmbedderUnavailable) as error:
            raise invalid(f"{path}.embedder", str(error)) from error
    if known_dim is None:
        if spec.dim is None:
            raise invalid(f"{path}.dim", f"is needed with {spec.embedder!r}: how many numbers does one of your vectors have?")
        return spec.embedder, spec.dim, version
    if spec.dim not in (None, known_dim):
        raise invalid(f"{path}.dim", f"{spec.embedder!r} gives {known_dim} numbers; leave dim out, or set {known_dim}")
    return spec.embedder, known_dim, version
