"""Snapshots: one object {sums, ledger, offset, codec version, build} as bytes with a checksum.

A snapshot only saves time. One that cannot be used is skipped, and the log is folded from an older one or from zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import torch

from bandits import state as states
from bandits.types import Policy, State
from service.engine import events
from service.engine.events import Created
from service.engine.ledger import Ledger

BUILD = f"torch {torch.__version__}, detector 2"
"""Another torch may round differently, and another detector of drift (`bandits/drift.py`) raises its alarms at other offsets."""


class SnapshotRefused(Exception):
    """A snapshot that must not replace the log up to its offset."""


class Content(msgspec.Struct, frozen=True):
    """What a snapshot holds. sums: the packed state.  derived: what the policy keeps beside it (`Policy.pack_derived`)."""

    version: int
    offset: int
    build: str
    ledger: bytes
    sums: bytes
    derived: bytes = b""


class Sealed(msgspec.Struct, frozen=True):
    """The bytes of `Content` with their sha256: a flipped bit in a sum would be a valid snapshot otherwise."""

    content: bytes
    sha256: bytes


def pack(policy: Policy, state: State, ledger: bytes, offset: int) -> bytes:
    """The snapshot of a state and of its packed ledger, both as of `offset`."""
    sums, derived = states.pack(policy, state), policy.pack_derived(state)
    content = msgspec.msgpack.encode(Content(events.VERSION, offset, BUILD, ledger, sums, derived))
    return msgspec.msgpack.encode(Sealed(content, hashlib.sha256(content).digest()))


def unpack(policy: Policy, created: Created, blob: bytes, *, any_build: bool = False) -> tuple[Ledger, State]:
    """The ledger and the state, nothing derived yet but what the snapshot keeps for this build; raises whatever is wrong with the
    bytes.
    """
    sealed = msgspec.msgpack.decode(blob, type=Sealed)
    if hashlib.sha256(sealed.content).digest() != sealed.sha256:
        raise SnapshotRefused("the checksum does not match")
    kept = msgspec.msgpack.decode(sealed.content, type=Content)
    # A snapshot of another build is passed over, and the log folded; any_build: where the log does not reach back so far.
    if kept.version != events.VERSION or (kept.build != BUILD and not any_build):
        raise SnapshotRefused(f"version {kept.version} of {kept.build}, this is {events.VERSION} of {BUILD}")
    ledger = Ledger.unpack(created, kept.ledger)
    state = states.unpack(policy, kept.sums)
    if kept.build == BUILD:
        state = policy.unpack_derived(state, kept.derived)
    state = replace(state, retired=ledger.retired())
    if (kept.offset, len(state.arms)) != (ledger.offset, len(ledger.arms)):
        raise SnapshotRefused("its parts are not of one moment")
    return ledger, state
