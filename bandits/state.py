"""Functions of states: start, fold observations, pack to bytes and back, digest.

    start --> fold(observation) --> fold(observation) --> ... --> pack --> bytes --> unpack --> the same state

The same observations in the same order give the same bytes (same build and device).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bandits.errors import CorruptState
from bandits.types import LAYOUT, REFERENCE, Amendment, ArmState, Observation, Policy, State


def start(policy: Policy, *, arms: int, layout: int = LAYOUT) -> State:
    """A state in which nothing has been seen."""
    empty = tuple(policy.init() for _ in range(arms))
    return State(empty, policy.init_reference(), recent=() if policy.forget_half_life is None else empty, layout=layout)


def fold(policy: Policy, state: State, seen: Observation) -> State:
    """The state after one observation; only the statistic of its arm is a new object, except where older outcomes are dropped."""
    if seen.arm == REFERENCE:
        return replace(state, reference=policy.update_reference(state, seen))
    folded = policy.fold(state, _within(seen, state.since))
    if policy.forget_half_life is None:
        return folded
    recent, outcomes = list(state.recent), state.outcomes + 1
    again = _within(replace(seen, was_pending=False), state.recent_since)
    recent[seen.arm] = policy.update(replace(folded, arms=state.recent), again)
    if outcomes % policy.forget_half_life:
        return replace(folded, recent=tuple(recent), outcomes=outcomes)
    arms = tuple(policy.carry_pending(old, new) for old, new in zip(folded.arms, recent, strict=True))
    empty = tuple(policy.init() for _ in arms)
    since, recent_since = state.recent_since, (seen.offset + 1,) * len(arms)
    return policy.dropped(replace(folded, arms=arms, recent=empty, outcomes=outcomes, since=since, recent_since=recent_since))


def _within(seen: Observation, since: Sequence[int]) -> Observation:
    """As sums see it that hold what came from these offsets on."""
    first = since[seen.arm] if seen.arm < len(since) else 0
    return seen if not seen.held or seen.held >= first else replace(seen, held=0)


def amend(policy: Policy, state: State, change: Amendment) -> State:
    """The state after values of an earlier decision changed, wherever its sums still hold the old ones."""
    amended, here = state, change.within(state.since)
    if not here.is_empty:
        amended = policy.amend(state, here)
    there = change.within(state.recent_since)
    if policy.forget_half_life is None or there.is_empty:
        return amended
    recent = list(state.recent)
    recent[change.arm] = policy.amend_arm(replace(amended, arms=state.recent), there)
    return replace(amended, recent=tuple(recent))


def reset_arm(policy: Policy, state: State, arm: int, *, offset: int) -> State:
    """The state in which nothing is known of an arm from before `offset`."""

    def moved(since: tuple[int, ...]) -> tuple[int, ...]:
        padded = [*since, *[0] * (len(state.arms) - len(since))]
        padded[arm] = offset
        return tuple(padded)

    return replace(policy.reset_arm(state, arm), since=moved(state.since), recent_since=moved(state.recent_since))


def add_arm(policy: Policy, state: State) -> State:
    """The state with one more arm that has seen nothing. Indices of earlier arms stay valid for ever."""
    new = policy.init()
    return replace(state, arms=(*state.arms, new), recent=(*state.recent, new) if policy.forget_half_life else ())


def with_arm(state: State, index: int, arm: ArmState) -> State:
    """The state with the statistic of one arm replaced."""
    return with_arms(state, (*state.arms[:index], arm, *state.arms[index + 1 :]))


def with_arms(state: State, arms: Sequence[ArmState]) -> State:
    """The state with these statistics; the same state where they are the same, so that what was derived from them still holds."""
    return state if all(map(operator.is_, arms, state.arms)) else state.with_arms(tuple(arms))


def _stored(statistic: Any, layout: int) -> Iterator[tuple[str, Any]]:
    """(name, type) of the fields that are part of a statistic in this layout, caches left out."""
    hints = typing.get_type_hints(type(statistic))
    for item in fields(statistic):
        if not item.metadata.get("derived") and item.metadata.get("since", 1) <= layout:
            yield item.name, hints[item.name]


def packed_layout(policy: Policy, state: State) -> int:
    """The newest layout, up to the state's, that changed anything for this policy: its bytes and digest are in it."""
    statistics, newest = [policy.init(), policy.init_reference()], 1
    while statistics:
        one = statistics.pop()
        for item in fields(one):
            newest = max(newest, min(item.metadata.get("since", 1), state.layout))
            value = getattr(one, item.name)
            statistics += [part for part in (value if isinstance(value, tuple) else ()) if dataclasses.is_dataclass(part)]
    return newest


def _to_tensors(prefix: str, statistic: Any, layout: int) -> Iterator[tuple[str, Tensor]]:
    for name, kind in _stored(statistic, layout):
        value = getattr(statistic, name)
        if typing.get_origin(kind) is tuple:  # of tensors of one shape, or of statistics
            if typing.get_args(kind)[0] is Tensor:
                value = torch.stack(value) if value else torch.empty((0, 0), dtype=torch.float64)
            else:
                for index, one in enumerate(value):
                    yield from _to_tensors(f"{prefix}{name}.{index}.", one, layout)
                continue
        if kind is int:
            value = torch.tensor(value, dtype=torch.int64)
        elif kind is float:
            value = torch.tensor(value, dtype=torch.float64)
        yield f"{prefix}{name}", value.clone(memory_format=torch.contiguous_format)  # no two of them may share memory


def pack(policy: Policy, state: State) -> bytes:
    """The state as safetensors bytes: equal states give equal bytes."""
    tensors: dict[str, Tensor] = {}
    for index, arm in enumerate(state.arms):
        tensors.update(_to_tensors(f"arm.{index}.", arm, state.layout))
    if policy.forget_half_life is not None:
        for index, arm in enumerate(state.recent):
            tensors.update(_to_tensors(f"recent.{index}.", arm, state.layout))
        tensors["outcomes"] = torch.tensor(state.outcomes, dtype=torch.int64)
    tensors.update(_to_tensors("reference.", state.reference, state.layout))
    about = json.dumps({"format": packed_layout(policy, state), "policy": policy.kind, "arms": len(state.arms)})
    return safetensors.torch.save(tensors, metadata={"nextarm": about})  # one key: the order of several is not defined


def unpack(policy: Policy, data: bytes, *, layout: int = LAYOUT, any_layout: bool = False) -> State:
    """The state that `pack` wrote of one in this layout; `CorruptState` for anything else.

    any_layout: sums of an earlier layout will do, too, and grow in this one from here on.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["nextarm"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptState("these bytes are not a packed state") from error
    expected = packed_layout(policy, start(policy, arms=0, layout=layout))
    found = about.get("format")
    usable = found == expected or (any_layout and found in range(1, expected))
    if not usable or about != {"format": found, "policy": policy.kind, "arms": about.get("arms")}:
        raise CorruptState(f"packed as {about}, expected format {expected} of {policy.kind}")

    def arms(prefix: str) -> tuple[ArmState, ...]:
        return tuple(_from_tensors(f"{prefix}.{index}.", policy.init(), tensors, found) for index in range(about["arms"]))

    state = State(arms("arm"), _from_tensors("reference.", policy.init_reference(), tensors, found), layout=layout)
    if policy.forget_half_life is None:
        return state
    if "outcomes" not in tensors:
        raise CorruptState("outcomes is missing")
    return replace(state, recent=arms("recent"), outcomes=int(tensors["outcomes"]))


def _from_tensors(prefix: str, template: Any, tensors: dict[str, Tensor], layout: int) -> Any:
    values: dict[str, Any] = {}
    for name, kind in _stored(template, layout):
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is not Tensor:
            values[name] = tuple(_several(f"{prefix}{name}.", getattr(template, name), tensors, layout))
            continue
        if prefix + name not in tensors:
            raise CorruptState(f"{prefix}{name} is missing")
        value = tensors[prefix + name]
        if typing.get_origin(kind) is tuple:
            values[name] = tuple(value)
            continue
        values[name] = kind(value.item()) if kind in (int, float) else value
        if kind is Tensor and value.ndim != getattr(template, name).ndim:
            raise CorruptState(f"{prefix}{name} has {value.ndim} dimensions")
    return replace(template, **values)


def _several(prefix: str, templates: Sequence[Any], tensors: dict[str, Tensor], layout: int) -> Iterator[Any]:
    """The statistics of a tuple, as many as were packed. templates: of the first ones; the last of them is that of all others."""
    index = 0
    while any(name.startswith(f"{prefix}{index}.") for name in tensors):
        yield _from_tensors(f"{prefix}{index}.", templates[min(index, len(templates) - 1)], tensors, layout)
        index += 1


def digest(policy: Policy, state: State) -> str:
    """sha256 of the packed state."""
    return hashlib.sha256(pack(policy, state)).hexdigest()
