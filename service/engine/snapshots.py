"""Snapshots: one object {sums, ledger, offset, codec version, build} as bytes with a checksum.

A snapshot only saves time. One that cannot be used is skipped, and the log is folded from an older one or from zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import torch

from bandits import state as states
from bandits.types import Policy, State
from service.engine import events
from service.engine.events import Created
from service.engine.ledger import Ledger
from service.engine.policies import Learned, deciding_policy, shadow_policy

BUILD = f"torch {torch.__version__}, detector 2, auto 3"
"""Another torch may round differently, another detector of drift (`bandits/drift.py`) raises its alarms at other offsets, and
another `auto` keeps its posterior in another form, or prepares it at other offsets after amendments.
"""
WITH_SHADOWS = 2
"""The version of a snapshot with shadows or promotions, which builds that know of neither pass over."""


class SnapshotRefused(Exception):
    """A snapshot that must not replace the log up to its offset."""


class Since(msgspec.Struct, frozen=True):
    """From which offsets on outcomes are in a state: its `since` and `recent_since`."""

    arms: tuple[int, ...] = ()
    recent: tuple[int, ...] = ()

    @staticmethod
    def of(state: State) -> Since:
        """What a state holds."""
        return Since(state.since, state.recent_since)


class ShadowContent(msgspec.Struct, frozen=True):
    """What a snapshot holds of a shadow, by the number of its policy; see `Content` and `Learned`."""

    number: int
    sums: bytes
    derived: bytes
    left: int
    failure: str
    since: Since | None = None


class Content(msgspec.Struct, frozen=True):
    """What a snapshot holds. sums: the packed state.  derived: what the policy keeps beside it (`Policy.pack_derived`).
    since: null in a snapshot that is older than it.
    """

    version: int
    offset: int
    build: str
    ledger: bytes
    sums: bytes
    derived: bytes = b""
    shadows: list[ShadowContent] = []
    left: int = 0
    since: Since | None = None


class Unpacked(NamedTuple):
    """A snapshot: the ledger, the state of the policy that decides, that policy, what it could not learn, and the shadows."""

    ledger: Ledger
    state: State
    policy: Policy
    left: int
    shadows: list[Learned]


class Sealed(msgspec.Struct, frozen=True):
    """The bytes of `Content` with their sha256: a flipped bit in a sum would be a valid snapshot otherwise."""

    content: bytes
    sha256: bytes


# Built at import: threads read the snapshots of several bandits at once, and where msgspec is still describing a struct for one
# of them, another that decodes it crashes the process (msgspec 0.22).
_sealed = msgspec.msgpack.Decoder(Sealed)
_content = msgspec.msgpack.Decoder(Content)


def pack(
    policy: Policy,
    state: State,
    ledger: bytes,
    offset: int,
    *,
    shadows: Sequence[Learned] = (),
    left: int = 0,
    promoted: bool = False,
) -> bytes:
    """The snapshot of a state and of its packed ledger, both as of `offset`."""
    version = WITH_SHADOWS if shadows or promoted else events.VERSION
    others = [
        ShadowContent(
            one.number,
            states.pack(one.policy, one.state),
            one.policy.pack_derived(one.state),
            one.left,
            one.failure,
            Since.of(one.state),
        )
        for one in shadows
    ]
    # A state has megabytes: without a name for them its bytes are dropped before the content is copied once more.
    content = msgspec.msgpack.encode(
        Content(
            version,
            offset,
            BUILD,
            ledger,
            states.pack(policy, state),
            policy.pack_derived(state),
            others,
            left,
            Since.of(state),
        )
    )
    return msgspec.msgpack.encode(Sealed(content, hashlib.sha256(content).digest()))


def unpack(policy: Policy, created: Created, blob: bytes, *, any_build: bool = False) -> Unpacked:
    """The ledger and the states, nothing derived yet but what the snapshot keeps for this build; raises whatever is wrong with
    the bytes. policy: as the first event names it.
    """
    sealed = _sealed.decode(blob)
    if hashlib.sha256(sealed.content).digest() != sealed.sha256:
        raise SnapshotRefused("the checksum does not match")
    kept = _content.decode(sealed.content)
    # A snapshot of another build is passed over, and the log folded; any_build: where the log does not reach back so far.
    if kept.version not in (events.VERSION, WITH_SHADOWS) or (kept.build != BUILD and not any_build):
        raise SnapshotRefused(f"version {kept.version} of {kept.build}, this is {events.VERSION} of {BUILD}")
    ledger = Ledger.unpack(created, kept.ledger)
    policy = policy if ledger.live.policy is None else deciding_policy(created, ledger.live)

    def state_of(policy: Policy, sums: bytes, derived: bytes, since: Since | None) -> State:
        if since is None and policy.drops_outcomes and not any_build:
            raise SnapshotRefused("it does not say which outcomes its sums hold")
        state = states.unpack(policy, sums, layout=ledger.layout, any_layout=any_build)
        if kept.build == BUILD:
            state = policy.unpack_derived(state, derived)
        if len(state.arms) != len(ledger.arms):
            raise SnapshotRefused("its parts are not of one moment")
        since = since or Since()
        return replace(state, retired=ledger.retired(), since=since.arms, recent_since=since.recent)

    state = state_of(policy, kept.sums, kept.derived, kept.since)
    packed, shadows = {one.number: one for one in kept.shadows}, []
    for record in ledger.shadows.values():
        if record.number not in packed:
            raise SnapshotRefused("its parts are not of one moment")
        one, own = packed[record.number], shadow_policy(created, record)
        shadows.append(
            Learned(one.number, own, state_of(own, one.sums, one.derived, one.since), left=one.left, failure=one.failure)
        )
    if kept.offset != ledger.offset:
        raise SnapshotRefused("its parts are not of one moment")
    return Unpacked(ledger, state, policy, kept.left, shadows)
