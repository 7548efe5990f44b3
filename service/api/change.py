"""Changing a bandit over HTTP: what is live becomes an event, everything else is named as what needs another bandit."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from bandits.errors import InvalidHyperparameter
from bandits.hyperparameters import check_sound, declared
from service.api.create import check_sessions
from service.api.problems import Problem, invalid
from service.api.requests import BanditBody, BanditPatch, completed
from service.engine.events import BudgetSet, Configured, CooldownSet
from service.engine.learner import Learner

LIVE = ("policy", "objective", "budget", "reward", "cooldown", "session_ttl_s")
LIVE_OF_REWARD = {"default": "default_reward", "timeout_s": "timeout_s"}
"""Field of `reward` -> field of the event that changes it."""
PATCHED = "PATCH changes it"
OTHER_POLICY = (
    "a shadow with another policy can be promoted (PUT .../shadows/{shadow}, POST .../shadows/{shadow}/promote), and "
    "POST .../clone makes a bandit with another one"
)
"""How the kind of a policy changes, or a hyperparameter that statistics depend on."""


def configuration(learner: Learner) -> dict[str, Any]:
    """The bandit as a body that creates it as it is now: defaults filled in, arms that were added, live values."""
    created, ledger = learner.created, learner.ledger
    live, request = ledger.live, completed(created.request)
    budget = ledger.spending and {
        "signal": ledger.spending.budget.signal,
        "per_decision": ledger.spending.budget.per_decision,
    }
    given = {
        "objective": live.objective if live.objective != {"reward": 1.0} or "objective" in request else None,
        "budget": budget,
        "session_ttl_s": live.session_ttl_s,
        "cooldown": live.cooldown and msgspec.structs.asdict(live.cooldown),
    }
    timeout = request["reward"]["timeout_s"] if live.timeout_s == created.timeout_s else live.timeout_s
    return {
        **{name: value for name, value in request.items() if name not in given},
        **{name: value for name, value in given.items() if value is not None},
        "policy": {**(request["policy"] if live.policy is None else {}), "kind": learner.policy.kind, **live.hyperparameters},
        "arms": [{"price": arm.price, "metadata": arm.metadata, "name": arm.name} for arm in ledger.arms if arm.active],
        "reward": {**request["reward"], "default": live.default_reward, "timeout_s": timeout},
        "seed": created.seed,
    }


def check_same(learner: Learner, body: BanditBody) -> None:
    """Raise `bandit_exists`, naming each field that differs, unless the body asks for the bandit as it is now."""
    kept, asked = configuration(learner), body.request()
    if kept["policy"]["kind"] == body.policy.kind:
        for item in declared(type(learner.policy)):
            if item.name not in body.policy.model_fields_set and kept["policy"][item.name] in item.facts.former:
                asked["policy"][item.name] = kept["policy"][item.name]
    asked["seed"] = learner.created.seed if body.seed is None else body.seed
    for one in (kept, asked):
        one["arms"] = sorted(one["arms"], key=lambda arm: arm["name"])
        for part in ("policy", "reward"):
            one |= {f"{part}.{name}": value for name, value in one.pop(part).items()}
    differing = [name for name in {**kept, **asked} if kept.get(name) != asked.get(name)]
    if "policy.kind" in differing:  # hyperparameters of two kinds say nothing beside each other
        differing = [name for name in differing if name == "policy.kind" or not name.startswith("policy.")]
    if not differing:
        return
    raise Problem(
        "bandit_exists",
        "a bandit of this name exists with another configuration; change it, delete it first, or choose another name",
        errors=[(name, f"is {_short(kept.get(name))} now; {_way_to_change(name, learner)}") for name in differing],
    )


def _way_to_change(name: str, learner: Learner) -> str:
    """The route that changes a field of the configuration."""
    part, _, field = name.partition(".")
    if part == "arms":
        return "PUT and DELETE .../arms/{arm} change them"
    if part == "policy":
        is_live = any(item.name == field and item.facts.live for item in declared(type(learner.policy)))
        return PATCHED if is_live else OTHER_POLICY
    return PATCHED if field in LIVE_OF_REWARD or (part in LIVE and not field) else "another bandit can differ"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 300 else f"{text[:300]}..."


def configured_event(learner: Learner, body: BanditPatch, now: datetime) -> Configured | None:
    """The event of a change, None where everything is so already. 409 `not_live` names what cannot change, 422 what is wrong."""
    kept, begun = configuration(learner), "is what the log was begun with"
    fixed = [
        (name, "PUT and DELETE .../arms/{arm} change arms" if name == "arms" else begun)
        for name in sorted(body.model_fields_set - {*LIVE})
        if getattr(body, name) != kept.get(name)
    ]
    changes = _hyperparameters(learner, body.policy or {}, fixed) | _weighing(learner, body, fixed)
    cooldown = None if body.cooldown is None else CooldownSet(**body.cooldown.model_dump())
    if "cooldown" in body.model_fields_set and cooldown != learner.ledger.live.cooldown:
        changes["cooldown"] = cooldown
    if "session_ttl_s" in body.model_fields_set and body.session_ttl_s != learner.ledger.live.session_ttl_s:
        if body.session_ttl_s is not None:
            check_sessions(learner.policy)
        changes["session_ttl_s"] = body.session_ttl_s
    for name, value in (body.reward or {}).items():
        field = LIVE_OF_REWARD.get(name)
        if field is not None and value != getattr(learner.ledger.live, field):
            changes[field] = value
        elif field is None and value != kept["reward"].get(name):
            fixed.append((f"reward.{name}", begun))
    if fixed:
        raise Problem("not_live", "PATCH cannot change this, and changed nothing; create another bandit for it", errors=fixed)
    if changes.get("default_reward") is not None and "output" in learner.policy.needs:
        raise invalid("reward.default", f"{learner.policy.kind} learns from outputs; a reward cannot stand for a missing one")
    return Configured(at=now, **changes) if changes else None


def _weighing(learner: Learner, body: BanditPatch, fixed: list[tuple[str, str]]) -> dict[str, Any]:
    """The objective and the budget where they change; signals that are not learned are added to `fixed`."""
    named = {"objective": list(body.objective or ()), "budget": [body.budget.signal] if body.budget else []}
    learned = ", ".join(learner.created.learned)
    for name, signals in named.items():
        if signals and not learner.policy.weighs_signals:
            raise invalid(name, f"is for policies that weigh signals, not for {learner.policy.kind}; leave it out")
        unknown = [one for one in signals if one not in learner.created.learned]
        fixed += [
            ("budget.signal" if name == "budget" else f"objective.{one}", f"{one!r} is not learned here, but {learned}")
            for one in unknown
        ]
    changes: dict[str, Any] = {}
    objective, spending = body.objective or {"reward": 1.0}, learner.ledger.spending
    if "objective" in body.model_fields_set and objective != learner.ledger.live.objective:
        changes["objective"] = body.objective
    budget = None if body.budget is None else BudgetSet(**body.budget.model_dump())
    if "budget" in body.model_fields_set and budget != (None if spending is None else spending.budget):
        changes["budget"] = budget
    return changes


def _hyperparameters(learner: Learner, given: dict[str, Any], fixed: list[tuple[str, str]]) -> dict[str, Any]:
    """Live hyperparameters that change; what is not live and differs is added to `fixed`."""
    policy, known = learner.policy, {item.name: item for item in declared(type(learner.policy))}
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if name == "kind":
            if value != policy.kind:
                fixed.append(("policy.kind", f"is {policy.kind} now; {OTHER_POLICY}"))
        elif name not in known:
            raise invalid(f"policy.{name}", f"is not a hyperparameter of {policy.kind}; it has {', '.join(sorted(known))}")
        elif value != getattr(policy, name):
            if not known[name].facts.live:
                fixed.append((f"policy.{name}", f"shapes what was learned; {OTHER_POLICY}"))
            changes[name] = float(value) if known[name].type is float and type(value) is int else value
    try:
        check_sound(replace(policy, **changes))
    except InvalidHyperparameter as error:
        raise invalid(f"policy.{error.field}", error.message) from error
    return {"hyperparameters": changes} if changes else {}
