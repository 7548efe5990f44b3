"""The contenders of a replay: policies named on the command line, checked against those of the server.

pak-ucb                                      its defaults
pak-ucb:exploration=0.1:prior_mean=1         some hyperparameters, for this one
--set exploration=0.1                        for every --policy that has it
--policy-json '{"kind": "pak-ucb", ...}'     the API's object as it is
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.cli.replay.errors import BadInput, ServerError
from service.cli.replay.player import Api, Contender


@dataclass(frozen=True)
class Offered:
    """What the server says of one kind of policy: whether a decision takes a prompt, and its hyperparameters by name."""

    contextual: bool
    hyperparameters: frozenset[str]


def offered(api: Api) -> dict[str, Offered]:
    """Every policy of the server by kind."""
    answer = api.call("GET", "/v1/policies")
    try:
        return {item["kind"]: Offered(item["contextual"], frozenset(item["hyperparameters"])) for item in answer["policies"]}
    except (KeyError, TypeError):
        raise ServerError(f"{api.url} does not list its policies as this version expects; is it a nextarm server?") from None


def contenders(
    policies: Sequence[str], *, settings: Sequence[str], objects: Sequence[str], known: Mapping[str, Offered]
) -> list[Contender]:
    """The contenders in order, each label once. policies: KIND[:name=value]..., commas between; objects: JSON texts."""
    shared = dict(_setting(text) for text in settings)
    everyone = [_named(text, shared, known) for given in policies for text in given.split(",") if text.strip()]
    everyone += [_object(text, known) for text in objects]
    unused = [name for name in shared if not any(name in player.policy for player in everyone)]
    if unused:
        raise BadInput(f"--set {unused[0]}: none of the policies has such a hyperparameter")
    labels = [player.label for player in everyone]
    repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if repeated is not None:
        raise BadInput(f"{repeated!r} is listed twice")
    return everyone


def _named(text: str, shared: Mapping[str, Any], known: Mapping[str, Offered]) -> Contender:
    """The label shows what is this contender's own; what is shared by all is printed once, under the table."""
    kind, *own = text.strip().split(":")
    facts = _kind(kind, known)
    settings = {name: value for name, value in shared.items() if name in facts.hyperparameters} | dict(map(_setting, own))
    return Contender(label=" ".join([kind, *own]), policy={"kind": kind, **settings}, contextual=facts.contextual)


def _object(text: str, known: Mapping[str, Offered]) -> Contender:
    try:
        policy = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"--policy-json is not JSON: {text[:60]!r}") from None
    if not isinstance(policy, dict) or not isinstance(policy.get("kind"), str):
        raise BadInput('--policy-json must be an object with a kind, such as {"kind": "pak-ucb"}')
    kind, label = policy.pop("kind"), policy.pop("label", None)
    words = [kind, *(f"{name}={json.dumps(value)}" for name, value in policy.items())]
    return Contender(
        label=str(label or " ".join(words)), policy={"kind": kind, **policy}, contextual=_kind(kind, known).contextual
    )


def _kind(kind: str, known: Mapping[str, Offered]) -> Offered:
    if kind not in known:
        raise BadInput(f"there is no policy {kind!r}; the server has {', '.join(sorted(known))}")
    return known[kind]


def _setting(text: str) -> tuple[str, Any]:
    """`name=value` with the value as JSON where it is JSON (0.1, true, null), else as text (rbf)."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals or not value.strip():
        raise BadInput(f"{text!r} must read name=value")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()
