"""States as values, and as bytes that are either what was packed or refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import pytest
import torch
from numpy.random import default_rng

from bandits import state as states
from bandits.errors import CorruptState
from bandits.policies.baselines import Greedy
from bandits.policies.fd_ucb import FdUcb
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.registry import POLICIES, build
from bandits.types import REFERENCE, Context, NoReference, Observation, State
from tests.bandits.examples import EXAMPLES

POLICY = LinUcb(dim=3, ridge=0.6)


def learned(policy: LinUcb = POLICY, *, rounds: int = 9) -> State:
    g = default_rng(1)
    state = states.start(policy, arms=2)
    for t in range(rounds):
        x = torch.from_numpy(g.standard_normal(3))
        state = states.fold(policy, state, Observation(arm=t % 2, features=x, reward=float(g.uniform(0.1, 0.9))))
    return state


def test_a_state_starts_with_arms_that_have_seen_nothing() -> None:
    state = states.start(POLICY, arms=3)
    assert [arm.pulls for arm in state.arms] == [0, 0, 0]
    assert isinstance(state.reference, NoReference)
    assert len(states.start(POLICY, arms=0).arms) == 0


def test_an_observation_makes_one_new_statistic_and_shares_the_others() -> None:
    before = learned()
    after = states.fold(POLICY, before, Observation(arm=1, features=torch.ones(3, dtype=torch.float64), reward=0.4))
    assert after.arms[0] is before.arms[0]
    assert after.reference is before.reference
    assert (before.arms[1].pulls, after.arms[1].pulls) == (4, 5)


def test_other_arms_in_a_state_leave_all_the_rest_as_it_was() -> None:
    policy = dataclasses.replace(POLICY, forget_half_life=100)
    state = dataclasses.replace(learned(policy), cache="derived", retired=frozenset({1}), since=(3, 5), recent_since=(4, 6))
    other = state.with_arms(learned(rounds=2).arms)
    assert [arm.pulls for arm in (*state.arms, *other.arms)] == [5, 4, 1, 1]
    for field in dataclasses.fields(State):
        if field.name != "arms":
            assert getattr(other, field.name) is getattr(state, field.name)


def test_reference_material_changes_the_reference_alone() -> None:
    policy = FdUcb(output_dim=2)
    before = states.start(policy, arms=2)
    seen = Observation(arm=REFERENCE, output=torch.tensor([[0.3, 0.4], [0.1, -0.7]], dtype=torch.float64))
    after = states.fold(policy, before, seen)
    assert after.arms == before.arms
    assert (before.reference.count, after.reference.count) == (0, 2)
    with pytest.raises(NotImplementedError, match="takes no reference"):
        states.fold(POLICY, learned(), seen)


def test_a_new_arm_comes_last_and_the_others_keep_their_places() -> None:
    before = learned()
    after = states.add_arm(POLICY, before)
    assert after.arms[:2] == before.arms
    assert after.arms[2].pulls == 0


def test_one_arm_can_be_replaced() -> None:
    state = learned()
    replaced = states.with_arm(state, 0, state.arms[1])
    assert replaced.arms == (state.arms[1], state.arms[1])
    assert state.arms[0] is not state.arms[1]
    assert states.with_arm(state, 0, state.arms[0]) is state  # so that what was derived from its arms still holds


def test_the_digest_is_the_sha256_of_the_packed_bytes() -> None:
    state = learned()
    assert states.digest(POLICY, state) == hashlib.sha256(states.pack(POLICY, state)).hexdigest()
    assert states.digest(POLICY, state) != states.digest(POLICY, learned(rounds=8))


def test_the_digest_of_a_small_state_never_changes() -> None:
    """Logs, snapshots and replicas are compared by it: another number is another format."""
    policy = Greedy()
    state = states.start(policy, arms=2)
    for arm, reward in ((0, 0.25), (1, 0.75), (0, 0.5)):
        state = states.fold(policy, state, Observation(arm=arm, reward=reward))
    assert states.digest(policy, state) == "c55342a9f5f61ec05ab209d7800f0d3cac4b2e6437c76a5132e11e108efa312a"


def test_what_was_packed_is_unpacked() -> None:
    state = learned()
    back = states.unpack(POLICY, states.pack(POLICY, state))
    for one, other in zip(back.arms, state.arms, strict=True):
        assert one.pulls == other.pulls
        assert torch.equal(one.gram, other.gram)
        assert torch.equal(one.moment, other.moment)
        assert len(one.held) == len(other.held) > 0
        assert all(map(torch.equal, one.held, other.held))
        assert one.cache is None, "what is derived is derived again"


def test_a_state_without_arms_can_be_packed() -> None:
    state = states.start(POLICY, arms=0)
    assert states.unpack(POLICY, states.pack(POLICY, state)) == state


def test_the_layout_of_a_tensor_in_memory_does_not_matter() -> None:
    state = learned()
    arm = state.arms[0]
    strided = states.with_arm(state, 0, dataclasses.replace(arm, gram=arm.gram.T.contiguous().T))
    assert not strided.arms[0].gram.is_contiguous()
    assert states.pack(POLICY, strided) == states.pack(POLICY, state)


def test_bytes_that_were_cut_off_are_refused() -> None:
    data = states.pack(POLICY, learned())
    for size in range(len(data)):
        with pytest.raises(CorruptState):
            states.unpack(POLICY, data[:size])
    with pytest.raises(CorruptState):
        states.unpack(POLICY, data + b"\0")


def test_a_header_that_changed_is_refused_or_says_the_same() -> None:
    state = learned()
    data = states.pack(POLICY, state)
    header = 8 + int.from_bytes(data[:8], "little")
    for position in range(header):
        for mask in (0x01, 0x20, 0xFF):
            garbled = bytearray(data)
            garbled[position] ^= mask
            try:
                back = states.unpack(POLICY, bytes(garbled))
            except CorruptState:
                continue
            shapes = [[tuple(arm.gram.shape), tuple(arm.moment.shape)] for arm in back.arms]
            assert shapes == [[(4, 4), (4,)]] * 2, f"byte {position}: a state of another form"


def test_the_state_of_another_policy_is_refused() -> None:
    data = states.pack(POLICY, learned())
    with pytest.raises(CorruptState, match="lin-ucb"):
        states.unpack(PakUcb(dim=3), data)


def test_a_state_of_another_format_is_refused() -> None:
    data = states.pack(POLICY, learned())
    with pytest.raises(CorruptState, match="expected format 2"):
        states.unpack(POLICY, data.replace(b'\\"format\\": 2', b'\\"format\\": 3'))


def test_a_state_that_lacks_a_part_is_refused() -> None:
    data = states.pack(POLICY, learned())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    renamed = {("arm.9.gram" if name == "arm.1.gram" else name): entry for name, entry in header.items()}
    text = json.dumps(renamed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with pytest.raises(CorruptState, match=r"arm\.1\.gram is missing"):
        states.unpack(POLICY, len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"{}", b"pickle" * 50, b"\xff" * 64])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptState):
        states.unpack(POLICY, data)


@pytest.mark.parametrize("kind", [kind for kind, policy in POLICIES.items() if policy.weighs_signals])
def test_an_outcome_with_the_reward_alone_says_nothing_of_other_signals(kind: str) -> None:
    example = EXAMPLES[kind][0]
    policy = build(kind, example.settings, dim=example.dim, output_dim=example.output_dim, signals=("reward", "latency_s"))
    g = default_rng(3)
    state = other = states.start(policy, arms=2)
    for t in range(6):
        seen = example.seen(g, t % 2, example.features(g))
        state = states.fold(policy, state, dataclasses.replace(seen, reward=0.25 + 0.1 * t))
        other = states.fold(policy, other, dataclasses.replace(seen, signals=(0.25 + 0.1 * t, math.nan)))
    assert states.digest(policy, state) == states.digest(policy, other)
    context = Context(allowed=(True, True), features=example.features(g), coefficients=((1.0, 1.0), (-1.0, -1.0)))
    one, two = (policy.weights(policy.prepare(each), [context]).values for each in (state, other))
    assert torch.equal(one, two)
