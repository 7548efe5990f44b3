"""A stack that follows the arms of a bandit, against inverses of the same sums, and against the same policy without one."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bandits import state as states
from bandits.functional.inverse import BLOCK
from bandits.gpu import mirror as placements
from bandits.gpu.cost_model import Costs
from bandits.gpu.device_buffers import DeviceBuffers
from bandits.gpu.device_queue import DeviceQueueError
from bandits.gpu.mirror import DeviceMirror
from bandits.gpu.stack import CPU, Stack
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.regression.ridge import Ridge, RidgeArm
from bandits.types import Context, Observation, Policy, State

RIDGE, SIZE = 0.3, 6
ALWAYS = Costs(cpu_call=1.0, cpu_operation=0.0, gpu_call=0.0, gpu_byte=0.0, gpu_operation=0.0, gpu_staged=0.0)
NEVER = replace(ALWAYS, cpu_call=0.0, gpu_call=1.0)
FROM_5 = replace(NEVER, cpu_operation=1.0 / (2 * 5 * 3 * SIZE * (SIZE + 34)))  # a second for five contexts of three arms


def placed(*, costs: Costs = ALWAYS, **options: Any) -> DeviceMirror:
    return DeviceMirror(**{"size": SIZE, "ridge": RIDGE, "device": CPU, "batch": 8, "costs": lambda where: costs, **options})


def followed(one: DeviceMirror, arms: list[RidgeArm]) -> DeviceMirror:
    """After the device has all of it."""
    one.sync(arms)
    drain(one)
    return one


def drain(one: DeviceMirror) -> None:
    """Until the device has done all of it, or failed."""
    if one.stack is not None:
        with contextlib.suppress(DeviceQueueError):
            one.stack.wait()


def derived(arms: list[RidgeArm]) -> list[Ridge]:
    return [arm.ridge(RIDGE) for arm in arms]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class Arms:
    """Arms under random changes, beside rows that know nothing of them: of all that was learned, and of what is pending."""

    def __init__(self, seed: int) -> None:
        self.g = np.random.default_rng(seed)
        self.arms = [RidgeArm.init(SIZE), RidgeArm.init(SIZE)]
        self.learned = [np.zeros((0, SIZE + 1))] * 2  # rows z and their target
        self.pending: list[list[np.ndarray]] = [[], []]

    def change(self) -> str:
        kinds = ["learn", "anticipate", "anticipate_all", "outcome", "outcomes", "release", "add_arm"]
        kind = str(self.g.choice(kinds, p=[0.1, 0.35, 0.1, 0.25, 0.1, 0.08, 0.02]))
        k = int(self.g.integers(len(self.arms)))
        if len(self.pending[k]) < {"outcome": 1, "release": 1, "outcomes": 2}.get(kind, 0):
            kind = "anticipate"
        rows = self.g.standard_normal((3 if kind.endswith("_all") else 1, SIZE))
        targets = self.g.standard_normal(2).tolist()
        z = torch.from_numpy(rows)
        match kind:
            case "add_arm":
                self.arms.append(RidgeArm.init(SIZE))
                self.learned.append(np.zeros((0, SIZE + 1)))
                self.pending.append([])
            case "learn":
                self.arms[k] = self.arms[k].update(z[0], targets[0], ridge=RIDGE, was_pending=False)
                self._learned(k, rows[0], targets[0])
            case "anticipate" | "anticipate_all":
                one = kind == "anticipate"
                self.arms[k] = (
                    self.arms[k].add_pending(z[0], ridge=RIDGE) if one else self.arms[k].add_pending_many(z, ridge=RIDGE)
                )
                self.pending[k].extend(rows)
            case "release":
                gone = self.pending[k].pop(int(self.g.integers(len(self.pending[k]))))
                self.arms[k] = self.arms[k].remove_pending(torch.from_numpy(gone), ridge=RIDGE)
            case _:
                came = [self.pending[k].pop(0) for _ in targets[: 1 + (kind == "outcomes")]]
                known, both = [True] * len(came), targets[: len(came)]
                if len(came) == 1:
                    self.arms[k] = self.arms[k].update(torch.from_numpy(came[0]), both[0], ridge=RIDGE, was_pending=True)
                else:
                    self.arms[k] = self.arms[k].update_many([*torch.from_numpy(np.array(came))], both, was_pending=known)
                for row, target in zip(came, both, strict=True):
                    self._learned(k, row, target)
        return kind

    def _learned(self, k: int, row: np.ndarray, target: float) -> None:
        self.learned[k] = np.vstack([self.learned[k], [*row, target]])

    def scores(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means, widths = [], []
        for learned, pending in zip(self.learned, self.pending, strict=True):
            rows, targets = learned[:, :-1], learned[:, -1]
            gram = RIDGE * np.eye(SIZE) + rows.T @ rows
            means.append(z @ np.linalg.solve(gram, rows.T @ targets))
            gram = gram + sum((np.outer(row, row) for row in pending), np.zeros((SIZE, SIZE)))
            widths.append(np.sqrt(np.einsum("bi,ij,bj->b", z, np.linalg.inv(gram), z)))
        return np.stack(means, 1), np.stack(widths, 1)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_it_scores_as_fresh_inverses_do(threaded: bool, dtype: torch.dtype, within: float, seed: int) -> None:
    world, one, kinds = Arms(seed), placed(dtype=dtype, threaded=threaded), Counter[str]()
    for turn in range(260):
        kinds[world.change()] += 1
        if world.g.random() < 0.4:  # several changes at once
            continue
        z = world.g.standard_normal((int(world.g.integers(1, 12)), SIZE))
        found = followed(one, world.arms).score(derived(world.arms), torch.from_numpy(z))
        assert found is not None, (turn, one.broken)
        for ours, theirs in zip(found, world.scores(z), strict=True):
            assert ours.dtype == torch.float64
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=within, atol=within)
    assert len(kinds) == 7


def test_only_what_changed_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int]] = []
    for name in ("load", "append", "set_theta"):
        monkeypatch.setattr(Stack, name, _spied(name, getattr(Stack, name), sent))
    z, arms, one = normal(1, 40, SIZE), [RidgeArm.init(SIZE)] * 2, placed()

    def after(index: int, arm: RidgeArm) -> list[tuple[str, int]]:
        arms[index] = arm
        sent.clear()
        followed(one, arms)
        return list(sent)

    followed(one, arms)
    assert sent == [("load", 0), ("load", 1)]
    assert after(1, arms[1].add_pending(z[0], ridge=RIDGE)) == [("append", 1)]
    assert after(1, arms[1].update(z[0], 0.4, ridge=RIDGE, was_pending=True)) == [("set_theta", 1)], "the width knew of it"
    assert after(1, arms[1]) == []
    known = arms[1]
    assert after(1, known.add_pending(z[4], ridge=RIDGE)) == [("append", 1)]
    assert after(1, known.add_pending(z[5], ridge=RIDGE)) == [("load", 1), ("append", 1)], "as many rows, others"
    assert after(0, arms[0].add_pending_many(z[:3], ridge=RIDGE)) == [("append", 0)]
    assert after(0, arms[0].remove_pending(z[1], ridge=RIDGE)) == [("load", 0)]
    assert after(1, arms[1].add_pending_many(z[:BLOCK], ridge=RIDGE)) == [("load", 1)], "the CPU folded its rows"


def _spied(name: str, method: Callable[..., Any], sent: list[tuple[str, int]]) -> Callable[..., Any]:
    def spy(stack: Stack, arm: int, *values: Any, **named: Any) -> Any:
        sent.append((name, arm))
        return method(stack, arm, *values, **named)

    return spy


def test_other_arms_than_it_followed_last_are_not_its_own() -> None:
    older = [RidgeArm.init(SIZE).update(normal(2, SIZE), 0.3, ridge=RIDGE, was_pending=False), RidgeArm.init(SIZE)]
    newer = [older[0], older[1].add_pending(normal(3, SIZE), ridge=RIDGE)]
    z, one = normal(4, 5, SIZE), placed()
    assert one.score(derived(older), z) is None, "nothing was followed"
    followed(one, older)
    assert one.score(derived(older), z) is not None
    assert one.score(derived(newer), z) is None
    followed(one, newer)
    assert one.score(derived(newer), z) is not None
    assert one.score(derived(older), z) is None
    assert one.score(derived(newer[:1]), z) is None
    assert one.score(derived([*newer, RidgeArm.init(SIZE)]), z) is None
    assert followed(one, newer[:1]).score(derived(newer[:1]), z) is not None, "fewer arms are another stack"
    assert not one.broken


def test_the_rule_chooses_by_the_size_of_the_batch_and_builds_nothing_that_it_would_not_ask() -> None:
    arms, z = [RidgeArm.init(SIZE)] * 3, normal(5, 8, SIZE)
    one = followed(placed(costs=FROM_5), arms)
    assert [one.score(derived(arms), z[:n]) is not None for n in (1, 4, 6, 8)] == [False, False, True, True]
    assert followed(placed(costs=NEVER), arms).stack is None
    few = placed(costs=FROM_5, batch=4)
    assert followed(few, arms).stack is None
    assert followed(few, arms * 2).stack is not None, "of twice as many arms four contexts are enough"


def test_it_is_asked_once_its_device_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    arms, z, warm = [RidgeArm.init(SIZE)] * 2, normal(6, 2, SIZE), Future[None]()
    monkeypatch.setattr(Stack, "submit_warm", lambda stack: warm)
    one = followed(placed(), arms)
    assert one.score(derived(arms), z) is None
    warm.set_result(None)
    assert one.score(derived(arms), z) is not None


def test_who_asks_never_waits_for_what_is_being_followed() -> None:
    arms, z, go = [RidgeArm.init(SIZE)] * 2, normal(6, 2, SIZE), threading.Event()
    one = followed(placed(threaded=True), arms)
    assert one.stack is not None
    one.stack.on_queue(lambda buffers: go.wait(20))
    growing = threading.Thread(target=one.sync, args=([*arms, arms[0]],))  # waits in the queue for its new arm
    growing.start()
    assert one.score(derived(arms), z) is None
    go.set()
    growing.join()
    one.stack.wait()
    assert one.score(derived([*arms, arms[0]]), z) is not None


# -- failures ----------------------------------------------------------------------------------------------------------------


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("out of memory, say")


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("write", ["place", "append", "add_arm"])
def test_a_write_that_fails_ends_it_and_the_cpu_goes_on(monkeypatch: pytest.MonkeyPatch, write: str, threaded: bool) -> None:
    arms, z, one = [RidgeArm.init(SIZE)] * 2, normal(7, 4, SIZE), placed(threaded=threaded)
    followed(one, arms)
    with monkeypatch.context() as patched:
        patched.setattr(DeviceBuffers, write, fails)
        more = [arms[0], arms[1].add_pending(z[0], ridge=RIDGE), *arms[:1]]
        one.sync(more)
        drain(one)
        assert one.score(derived(more), z) is None
    assert "out of memory, say" in one.broken
    one.sync(arms)
    assert one.score(derived(arms), z) is None
    assert one.stack is None


def test_what_fails_before_there_is_a_stack_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unmeasured = DeviceMirror(size=SIZE, ridge=RIDGE, device=CPU, batch=8, costs=fails)  # type: ignore[arg-type]
    monkeypatch.setattr(placements, "Stack", fails)
    for one in (placed(), unmeasured):
        one.sync([RidgeArm.init(SIZE)])
        assert one.broken == "RuntimeError: out of memory, say"


def test_no_request_waits_long_for_a_device_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements, "PATIENCE_S", 0.05)
    arms, z, go = [RidgeArm.init(SIZE)] * 2, normal(8, 2, SIZE), threading.Event()
    one = followed(placed(threaded=True), arms)
    assert one.stack is not None
    one.stack.on_queue(lambda buffers: go.wait(20))
    assert one.score(derived(arms), z) is None
    assert one.broken.startswith("TimeoutError")
    go.set()


def test_numbers_beyond_its_precision_are_left_to_the_cpu() -> None:
    arms, z = [RidgeArm.init(SIZE)] * 2, 1e25 * normal(9, 2, SIZE)
    one = followed(placed(dtype=torch.float32), arms)
    assert one.score(derived(arms), z) is None
    assert one.score(derived(arms), 1e-25 * z) is not None
    assert not one.broken


# -- policies ----------------------------------------------------------------------------------------------------------------

POLICIES = [PakUcb(dim=3, random_features=5, seed=2, ridge=0.4), LinUcb(dim=3, ridge=0.4)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_a_policy_weighs_alike_and_its_bytes_stay_the_same(policy: PakUcb | LinUcb, monkeypatch: pytest.MonkeyPatch) -> None:
    g, state = np.random.default_rng(10), states.start(policy, arms=3)
    for n in range(50):
        features = torch.from_numpy(g.standard_normal(3))
        state = states.fold(policy, state, Observation(arm=n % 3, features=features, reward=float(g.random())))
    one = DeviceMirror(size=policy.regression.size, ridge=0.4, device=CPU, batch=8, costs=lambda where: ALWAYS)
    one.sync(state.arms)
    with_it = replace(state, cache=one)
    contexts = [Context(allowed=(True, n % 2 == 0, True), features=torch.from_numpy(g.standard_normal(3))) for n in range(7)]
    plain = policy.weights(state, contexts)
    monkeypatch.setattr("bandits.regression.model.ridge_scores", fails)  # so that it is the stack that answers
    ours = policy.weights(with_it, contexts)
    assert torch.equal(ours.values, plain.values)
    for name in ("estimate", "bonus"):
        torch.testing.assert_close(ours.scores[name], plain.scores[name], rtol=1e-11, atol=1e-11)
    assert with_it == state
    assert states.pack(policy, with_it) == states.pack(policy, state)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_a_broken_placement_is_as_none(policy: PakUcb | LinUcb) -> None:
    state = states.start(policy, arms=3)
    one = DeviceMirror(size=policy.regression.size, ridge=0.4, device=CPU, batch=8, costs=fails)  # type: ignore[arg-type]
    one.sync(state.arms)
    contexts = [Context(allowed=(True, True, True), features=normal(11, 3))]
    plain, ours = policy.weights(state, contexts), policy.weights(State(state.arms, state.reference, one), contexts)
    assert torch.equal(ours.values, plain.values)
    assert torch.equal(ours.scores["bonus"], plain.scores["bonus"])


def test_who_has_a_place_on_a_gpu() -> None:
    exact = PakUcb(dim=3, random_features=None)
    for policy in (*POLICIES, exact):
        assert placements.of(policy, device="cpu", batch=32) is None
    assert placements.of(exact, device="cuda:1", batch=32) is None
    assert placements.of(_other(), device="cuda:1", batch=32) is None
    pak, lin = (placements.of(policy, device="cuda:1", batch=32) for policy in POLICIES)
    assert pak is not None
    assert lin is not None
    assert (pak.size, lin.size, pak.device, pak.ridge) == (10, 4, torch.device("cuda", 1), 0.4)


def _other() -> Policy:
    """It has a regression, and a cache of its own."""
    from bandits.registry import build
    from tests.bandits.examples import EXAMPLES

    example = EXAMPLES["dak-ucb"][0]
    return build(example.kind, example.settings, dim=example.dim, output_dim=example.output_dim, seed=3)
