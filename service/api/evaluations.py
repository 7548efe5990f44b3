"""From the body of an evaluation to the plan that the engine keeps, with every refusal that can be known now."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import declared
from bandits.registry import POLICIES
from service.api.create import check_size
from service.api.problems import invalid, invalid_fields
from service.api.requests import POLICY_MODELS, EvaluationBody
from service.api.shadows import shadow_not_found
from service.api.validation import wrong_fields
from service.engine.evaluation import Evaluation, InvalidRequest, check_arm, policy_for
from service.engine.evaluation_process import Plan, parse_since
from service.engine.learner import Learner


def plan_of(learner: Learner, body: EvaluationBody, *, max_bytes: int) -> Plan:
    """The plan, up to the offset that is learned now. Raises `Problem`. max_bytes: of all candidates together."""
    until = learner.versions.committed.offset
    low_high = None if body.reward_range is None else (body.reward_range[0], body.reward_range[1])
    policies = [_candidate(place, given) for place, given in enumerate(body.policies)]
    shadows = {name: shadow.number for name, shadow in learner.ledger.shadows.items()}
    for place, one in enumerate(policies):
        if one.get("frozen", 0) > until:
            raise invalid(f"policies.{place}.frozen", f"the log ends at offset {until}; name one of its offsets")
        if one.get("shadow", "") not in ("", *shadows):
            raise shadow_not_found(f"policies.{place}.shadow", shadows)
        if "kind" in one:
            _check_policy(learner, place, one, max_bytes=max_bytes // len(policies))
    try:
        since = parse_since("" if body.since is None else body.since)
        if isinstance(since, int) and since > until:
            raise invalid("since", f"the log ends at offset {until}; name one of its offsets, or leave it out")
        Evaluation(learner.created, policies, since=since, shadows=shadows)
    except InvalidRequest as error:
        raise invalid(error.field, error.message) from error
    return Plan(
        source=learner.log.name,
        policies=policies,
        since="" if body.since is None else body.since,
        until=until,
        estimators=tuple(dict.fromkeys(body.estimators)),
        confidence=body.confidence,
        reward_range=low_high,
        shadows=shadows,
    )


def _candidate(place: int, given: dict[str, Any]) -> dict[str, Any]:
    """One policy, checked as in the body of a bandit."""
    path = f"policies.{place}"
    if set(given) == {"frozen"}:
        if type(given["frozen"]) is not int or given["frozen"] < 1:
            raise invalid(f"{path}.frozen", "must be an offset of the log, 1 or more")
        return given
    if set(given) == {"shadow"}:
        if not isinstance(given["shadow"], str):
            raise invalid(f"{path}.shadow", "must be the name of a shadow of this bandit")
        return given
    kind = given.get("kind")
    if not isinstance(kind, str):
        raise invalid(
            path, 'must have a `kind` with its hyperparameters, or `frozen` or `shadow` alone, e.g. {"kind": "lin-ucb"}'
        )
    if kind not in POLICIES:
        raise invalid(f"{path}.kind", f"must be one of {', '.join(POLICIES)}")
    try:
        return POLICY_MODELS[kind].model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise invalid_fields(wrong_fields(error, POLICY_MODELS[kind], within=path)) from error


def _check_policy(learner: Learner, place: int, given: dict[str, Any], *, max_bytes: int) -> None:
    """Whether it can be replayed along this log, in this memory."""
    try:
        policy = policy_for(learner.created, given)
        check_arm(policy, arms=len(learner.ledger.arms))
    except (InvalidHyperparameter, InvalidRequest) as error:
        raise invalid(f"policies.{place}.{error.field}", error.message) from error
    hyperparameters = {item.name: getattr(policy, item.name) for item in declared(type(policy))}
    check_size(policy, hyperparameters, arms=len(learner.ledger.arms), max_bytes=max_bytes, path=f"policies.{place}")
