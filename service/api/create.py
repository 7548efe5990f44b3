"""Creates the first event of a log from a validated body: resolves everything, refuses whatever could fail later."""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from msgspec import UNSET, UnsetType
from pydantic import ValidationError
from torch import Tensor

from bandits import state as states
from bandits.errors import BanditError, InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.objective import COST, REWARD
from bandits.registry import POLICIES, build
from bandits.signals import parts
from bandits.types import LAYOUT, Context, Observation, Policy, empty
from service.api.embedder_choice import PROBABILITIES, ResolvedEmbedder, resolve
from service.api.problems import invalid, invalid_fields
from service.api.requests import MAX_SIGNALS, WEIGHED_PARTS, BanditBody, EmbedderSpec, RewardSpec, Takes, check_arm_name
from service.api.validation import wrong_fields
from service.embedders import checkpoints
from service.embedders.base import Kind, Sources
from service.engine.events import BudgetSet, CooldownSet, Created, NewArm
from service.scorers import registry as scorers
from service.scorers import scoring
from service.scorers.base import CLIENT, InvalidParameter, ScorerError, ScorerSpec, UnknownScorer

COPIES = 3
"""What is derived from the sums takes about twice their memory again: an inverse, and one that counts pending decisions."""
SIMILAR = 0.8
"""Of the names of two signals (`difflib`): `rewards`, `rewrad` and `costs` are errors, `host` and `forward` are not."""
_FOR: dict[Kind, str] = {
    "probabilities": "set 'probabilities' and their number as `dim`, 'imagenet' for images, or 'open-clip' with `classes`",
    "vector": "set 'vector' and the length as `dim`, or an embedder of GET /v1/embedders",
}


def created_event(
    name: str,
    tenant: str,
    body: BanditBody,
    *,
    default_timeout_s: float,
    max_bytes: int,
    clock: Callable[[], datetime],
    sources: Sources = Sources(),  # noqa: B008 (frozen)
) -> Created:
    """The event, or a 422 that names the field. Blocks: weights are hashed, random frequencies are drawn, and the policy is tried
    once.
    """
    _check_arm_names(body)
    kind = body.policy.kind
    gives: Kind = "probabilities" if POLICIES[kind].outputs == "probabilities" else "vector"
    prompt = resolve(body.prompt, sources, path="prompt")
    output = resolve(body.output, sources, path="output", gives=gives)
    hyperparameters = {item.name: getattr(body.policy, item.name) for item in declared(POLICIES[kind])}
    seed = secrets.randbits(32) if body.seed is None else body.seed
    signals = _learned_signals(body)
    try:
        policy = build(kind, hyperparameters, dim=prompt.dim, output_dim=output.dim, seed=seed, signals=tuple(signals))
    except InvalidHyperparameter as error:
        raise invalid(f"policy.{error.field}", error.message) from error
    if policy.contextual and not prompt.identity:
        raise invalid(
            "prompt",
            f'{kind} decides by the prompt; say how: {{"embedder": "minilm"}} for texts, {{"dim": 384}} for your own vectors',
        )
    if "output" in policy.needs and not output.identity:
        raise invalid(
            "output",
            f'{kind} learns from outputs; say how: {{"embedder": "open-clip"}} for texts and images, {{"dim": 512}} for vectors',
        )
    if "output" in policy.needs and output.gives != gives:
        raise invalid("output.embedder", f"{kind} learns from {policy.outputs}; {_FOR[gives]}")
    if "output" in policy.needs and body.reward.default is not None:
        raise invalid("reward.default", f"{kind} learns from outputs; a reward cannot stand for a missing one")
    if body.session_ttl_s is not None:
        check_sessions(policy)
    _check_scorer(body.reward, prompt, output)
    check_size(policy, hyperparameters, arms=len(body.arms), max_bytes=max_bytes)
    try:
        policy.check_new()
    except InvalidHyperparameter as error:
        raise invalid(f"policy.{error.field}", error.message) from error
    dry_run_policy(policy)
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
        dim=prompt.dim,
        prompt_embedder=prompt.identity,
        prompt_version=prompt.version,
        output_dim=output.dim,
        output_embedder=output.identity,
        output_version=output.version,
        reward_source=body.reward.source,
        default_reward=body.reward.default,
        timeout_s=default_timeout_s if body.reward.timeout_s is None else body.reward.timeout_s,
        prompt_takes=_taken(body.prompt, prompt, path="prompt"),
        output_takes=_taken(
            body.output,
            output,
            path="output",
            scorer=None if body.reward.source == CLIENT else scorers.spec(body.reward.source),
        ),
        signals=UNSET if signals == [REWARD] else signals,
        objective=body.objective or UNSET,
        budget=BudgetSet(**body.budget.model_dump()) if body.budget else UNSET,
        prices_per=body.prices_per or UNSET,
        amend_until_s=UNSET if body.amend_until_s is None else body.amend_until_s,
        cooldown=CooldownSet(**body.cooldown.model_dump()) if body.cooldown else UNSET,
        session_ttl_s=UNSET if body.session_ttl_s is None else body.session_ttl_s,
        layout=LAYOUT,
    )


def _learned_signals(body: BanditBody) -> list[str]:
    """See `BanditBody.learned_signals`; 422 where the policy weighs none."""
    if not POLICIES[body.policy.kind].weighs_signals:
        for name in WEIGHED_PARTS:
            if getattr(body, name) is not None:
                weighing = ", ".join(kind for kind, policy in POLICIES.items() if policy.weighs_signals)
                raise invalid(name, f"is for policies that weigh signals ({weighing}), not for {body.policy.kind}; leave it out")
        return [REWARD]
    learned = body.learned_signals()
    if len(learned) > MAX_SIGNALS + 2:
        raise invalid("signals", f"at most {MAX_SIGNALS} are learned beside reward and cost; name fewer")
    return learned


def check_sessions(policy: Policy) -> None:
    """Refuse (422) sessions of a policy whose next attempt may need another arm."""
    if policy.episodic:
        raise invalid("session_ttl_s", f"is not for {policy.kind}, which tries several arms on one prompt; leave it out")


def check_spelling(body: BanditBody) -> None:
    """Refuse (422) a signal whose name is nearly that of a known one: no outcome would carry it, and it would count 0. Asked of a
    request alone: bandits that exist may have such names, and so may clones of them.
    """
    known = [REWARD, COST, *(body.signals or ())]
    named = [(f"objective.{name}", name) for name in body.objective or ()]
    if body.budget is not None:
        named.append(("budget.signal", body.budget.signal))
    wrong = []
    for path, name in named:
        if name not in known and (close := difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)):
            fix = f"is nearly {close[0]!r}; write that, or list {name!r} in `signals` if it is a signal of its own"
            wrong.append((path, fix))
    if wrong:
        raise invalid_fields(wrong)


def _check_arm_names(body: BanditBody) -> None:
    wrong = []
    for i, arm in enumerate(body.arms):
        try:
            check_arm_name(arm.name)
        except ValueError as error:
            wrong.append((f"arms.{i}.name", str(error)))
    if wrong:
        raise invalid_fields(wrong)


def _taken(
    given: EmbedderSpec | None, found: ResolvedEmbedder, *, path: str, scorer: ScorerSpec | None = None
) -> Takes | UnsetType:
    """Which contents are posted: those that the body names, or that embedder and scorer leave. Unset where no image is ever read:
    there, no text can be an image by mistake.
    """
    kinds = tuple(kind for kind in found.kinds if scorer is None or kind in scorer.reads)
    wanted = None if given is None else given.takes
    if wanted is not None and not set(("text", "image") if wanted == "both" else (wanted,)) <= set(kinds):
        can = " and ".join(kinds) or "vectors"
        raise invalid(f"{path}.takes", f"cannot be {wanted!r}: embedder and scorer read {can} here; leave `takes` out")
    if "image" not in found.kinds:
        return UNSET
    if wanted is not None:
        return wanted
    if len(kinds) == 1:
        return kinds[0]
    return "image" if scorer is not None and scorer.in_space else "both"


def _check_scorer(reward: RewardSpec, prompt: ResolvedEmbedder, output: ResolvedEmbedder) -> None:
    """The scorer exists, can be built with its parameters, and finds what it compares; a posted reward takes none."""
    given = reward.parameters()
    if reward.source == CLIENT:
        for name in (*given, *(("override",) if reward.override else ())):
            raise invalid(f"reward.{name}", "is for scorers; with the source 'client' every reward is posted")
        return
    try:
        spec = scorers.spec(reward.source)
        scoring.build(spec, given)
    except InvalidParameter as error:
        if isinstance(error.__cause__, ValidationError):  # in words, as for any field
            raise invalid_fields(wrong_fields(error.__cause__, within=f"reward.{error.field}")) from error
        raise invalid(f"reward.{error.field}", str(error)) from error
    except (UnknownScorer, ScorerError) as error:
        raise invalid("reward.source", str(error)) from error
    same = prompt.identity == output.identity and prompt.identity.startswith(f"{checkpoints.NAME}/") and not output.classes
    if spec.in_space and not same:
        raise invalid(
            "reward.source",
            f"{spec.name!r} compares prompt and output in one space: give both `prompt` and `output` "
            '{"embedder": "open-clip"} with the same `model` (and `checkpoint`)',
        )
    if not spec.in_space and output.identity in ("vector", PROBABILITIES) and "vector" not in spec.reads:
        raise invalid(
            "reward.source", f"{spec.name!r} reads texts, and this bandit takes {output.identity!r}; leave `output` out"
        )


def check_size(policy: Policy, hyperparameters: dict[str, Any], *, arms: int, max_bytes: int, path: str = "policy") -> None:
    """Refuse (422) a bandit that would not fit; its size is known without allocating it. path: of the policy in the body."""
    with torch.device("meta"):
        of_an_arm, of_the_reference = (
            sum(tensor.nbytes for tensor in _tensors(statistic)) for statistic in (policy.init(), policy.init_reference())
        )
        statistics = len(parts(policy.init()))
    if "reference" in policy.needs:  # second moments of the outputs, empty before the first
        of_an_arm, of_the_reference = of_an_arm + 8 * policy.output_dim**2, of_the_reference + 8 * policy.output_dim**2
    of_an_arm += statistics * _sampled(policy, hyperparameters) + policy.grown_arm_bytes
    frequencies = 8 * policy.dim * (hyperparameters.get("random_features") or 0)
    size = COPIES * (max(arms, 1) * of_an_arm + of_the_reference) + frequencies
    if size > max_bytes:
        raise invalid(
            path,
            f"with {arms} arms this takes about {size / 2**30:.1f} GiB of memory, the server allows {max_bytes / 2**30:.1f}: "
            "use fewer random features, shorter vectors or fewer arms, or raise NEXTARM_MAX_STATE_BYTES",
        )


def _sampled(policy: Policy, hyperparameters: dict[str, Any]) -> int:
    """Bytes of the samples that a statistic keeps, none of which are there at the start; exact kernels add a matrix of pairs."""
    samples = hyperparameters.get("max_samples") or 0
    exact = any(hyperparameters.get(name, 0) is None for name in ("random_features", "label_features"))
    return int(8 * samples * (policy.dim + 2 * policy.output_dim + (samples if exact else 0)))


def _tensors(statistic: Any) -> Iterator[Tensor]:
    """Of a statistic and of those that it consists of, as where several signals are learned."""
    for item in fields(statistic):
        value = getattr(statistic, item.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Tensor):
                yield part
            elif is_dataclass(part):
                yield from _tensors(part)


def dry_run_policy(policy: Policy) -> None:
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
