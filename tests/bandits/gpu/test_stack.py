"""Stacked ridge regressions against float64 inverses of the same sums, in every order of changes, from many threads at once."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.gpu.device_buffers import DeviceBuffers, padded
from bandits.gpu.stack import CPU, Stack, check_precision, scoring_dtype

RIDGE = 0.3
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param(False, "cpu"), pytest.param(True, "cpu"), pytest.param(True, "cuda", marks=cuda)]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


class Sums:
    """The truth: one gram and one theta per arm, inverted afresh each time."""

    def __init__(self, arms: int, size: int) -> None:
        self.grams = [RIDGE * np.eye(size) for _ in range(arms)]
        self.thetas = [np.zeros(size) for _ in range(arms)]

    def add(self, arms: Sequence[int], rows: np.ndarray) -> None:
        for arm, row in zip(arms, rows, strict=True):
            self.grams[arm] = self.grams[arm] + np.outer(row, row)

    def append(self, stack: Stack, arms: Sequence[int], rows: np.ndarray) -> None:
        """Add rows here and there: the inverse M = W - U'U of an arm loses columns'columns for columns = L^-1 Z M."""
        for arm in sorted(set(arms)):
            z, before = rows[np.flatnonzero(np.asarray(arms) == arm)], self.inverse(arm).numpy()
            factor = np.linalg.cholesky(np.eye(len(z)) + z @ before @ z.T)
            stack.append(arm, tensor(np.linalg.solve(factor, z @ before)))
        self.add(arms, rows)

    def inverse(self, arm: int) -> torch.Tensor:
        return tensor(np.linalg.inv(self.grams[arm]))

    def scores(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        widths = [np.sqrt(np.einsum("bi,ij,bj->b", z, np.linalg.inv(gram), z)) for gram in self.grams]
        return np.stack([z @ theta for theta in self.thetas], 1), np.stack(widths, 1)

    def agree(self, stack: Stack, z: np.ndarray, tolerance: float = 1e-11) -> None:
        mean, width = stack.scores(tensor(z))
        assert mean.dtype == width.dtype == torch.float64
        for ours, theirs in zip((mean, width), self.scores(z), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(0, 4), max_size=12), st.floats(0.01, 30.0)),
        st.tuples(st.sampled_from(["load", "theta", "add"]), st.integers(0, 4), st.just(1.0)),
    ),
    max_size=14,
)


@pytest.mark.parametrize("threaded", [False, True])
@settings(max_examples=40, deadline=None)
@given(changes=CHANGES, block=st.integers(1, 5), batch=st.integers(1, 6), seed=st.integers(0, 99))
def test_after_any_changes_the_widths_are_those_of_a_fresh_inverse(
    threaded: bool, changes: list[Any], block: int, batch: int, seed: int
) -> None:
    size, sums, rng = 7, Sums(2, 7), np.random.default_rng(seed)
    with Stack(arms=2, size=size, ridge=RIDGE, block=block, batch=batch, threaded=threaded) as stack:
        for kind, which, scale in changes:
            if kind == "append":
                arms = [arm % stack.arms for arm in which]
                sums.append(stack, arms, scale * rng.standard_normal((len(arms), size)))
                continue
            arm = which % stack.arms
            if kind == "add" and stack.arms < 6:
                assert stack.add_arm() == len(sums.grams)
                sums.grams.append(RIDGE * np.eye(size))
                sums.thetas.append(np.zeros(size))
            elif kind == "theta":
                sums.thetas[arm] = rng.standard_normal(size)
                stack.set_theta(arm, tensor(sums.thetas[arm]))
            elif kind == "load":
                sums.grams[arm] = RIDGE * np.eye(size) + (f := rng.standard_normal((size, 3))) @ f.T
                sums.thetas[arm] = rng.standard_normal(size)
                stack.load(arm, inverse=sums.inverse(arm), theta=tensor(sums.thetas[arm]))
        sums.agree(stack, rng.standard_normal((9, size)), tolerance=1e-8)


def test_float32_stays_close_and_a_load_drops_what_it_gathered() -> None:
    size, sums = 20, Sums(2, 20)
    rows, z = normal(4, 600, size), normal(5, 30, size)
    with Stack(arms=2, size=size, ridge=RIDGE, dtype=torch.float32) as stack:
        for n in range(600):
            sums.append(stack, [n % 2], rows[n : n + 1])
        gathered = np.abs(stack.scores(tensor(z))[1].numpy() / sums.scores(z)[1] - 1.0).max()
        assert 1e-7 < gathered < 1e-3
        stack.load(0, inverse=sums.inverse(0), theta=torch.full((size,), 0.5, dtype=torch.float64))
        mean, width = stack.scores(tensor(z))
        np.testing.assert_allclose(width[:, 0].numpy(), sums.scores(z)[1][:, 0], rtol=1e-6)
        np.testing.assert_allclose(mean[:, 0].numpy(), 0.5 * z.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("threaded", "device"), DEVICES)
def test_columns_that_were_computed_elsewhere_count_as_rows_do(threaded: bool, device: str) -> None:
    """Of W = (A + Z'Z)^-1 the owner knows W = M - U'U with U = L^-1 Z M; eleven of them are more than a block."""
    sums, z = Sums(2, 6), normal(20, 5, 6)
    with Stack(
        arms=2, size=6, ridge=RIDGE, block=4, batch=3, device=torch.device(device), dtype=torch.float64, threaded=threaded
    ) as stack:
        for turn in range(3):
            sums.append(stack, [1] * 11, normal(21 + turn, 11, 6))
            sums.agree(stack, z)
            sums.append(stack, [1, 0], normal(31 + turn, 2, 6))
            sums.agree(stack, z)
        stack.append(0, tensor(normal(1, 0, 6)))
        sums.agree(stack, z)
        with pytest.raises(ValueError, match="columns"):
            stack.append(0, tensor(normal(1, 2, 5)))


@pytest.mark.parametrize(("threaded", "device"), DEVICES)
def test_growth_keeps_what_was_known_and_drops_what_was_captured(threaded: bool, device: str) -> None:
    sums, z = Sums(1, 4), normal(6, 3, 4)
    with Stack(arms=1, size=4, ridge=RIDGE, device=torch.device(device), dtype=torch.float64, threaded=threaded) as stack:
        for arm in range(1, 9):
            sums.append(stack, [arm - 1, arm - 1], normal(arm, 2, 4))
            stack.scores(tensor(z))
            assert stack.add_arm() == arm
            sums.grams.append(RIDGE * np.eye(4))
            sums.thetas.append(np.zeros(4))
            sums.agree(stack, z)
        assert stack.on_queue(lambda buffers: buffers.capacity).result() == 16
        stack.submit_warm().result()


def test_nothing_is_written_into_what_was_given() -> None:
    rows, z = normal(11, 6, 4), normal(12, 3, 4)
    inverse, theta = tensor(np.linalg.inv(RIDGE * np.eye(4) + rows.T @ rows)), tensor(normal(13, 4))
    given_columns, given_z = tensor(0.1 * rows), tensor(z)
    copies = [each.clone() for each in (given_columns, given_z, inverse, theta)]
    with Stack(arms=2, size=4, ridge=RIDGE, block=2, batch=2) as stack:
        stack.load(0, inverse=inverse, theta=theta)
        stack.append(1, given_columns)
        first = stack.scores(given_z)[1]
        kept = first.clone()
        stack.append(1, given_columns[:1])
        stack.scores(given_z)
    assert all(torch.equal(a, b) for a, b in zip(copies, (given_columns, given_z, inverse, theta), strict=True))
    assert torch.equal(first, kept)  # an answer is not the memory of a slot


def test_no_rows_and_no_contexts_are_no_work() -> None:
    with Stack(arms=2, size=3, ridge=RIDGE, threaded=True) as stack:
        stack.append(1, torch.empty((0, 3), dtype=torch.float64)).result()
        mean, width = stack.scores(torch.empty((0, 3), dtype=torch.float64))
        assert mean.shape == width.shape == (0, 2)


def test_what_does_not_fit_is_refused_before_it_is_submitted() -> None:
    z = torch.zeros((2, 3), dtype=torch.float64)
    wrong: list[Callable[[Stack], object]] = [
        lambda stack: stack.scores(z[:, :2]),
        lambda stack: stack.append(0, z[:, :2]),
        lambda stack: stack.load(0, inverse=z, theta=z[0]),
        lambda stack: stack.set_theta(0, z[0, :2]),
    ]
    with Stack(arms=2, size=3, ridge=RIDGE) as stack:
        for call in wrong:
            with pytest.raises(ValueError, match="shape"):
                call(stack)
        with pytest.raises(IndexError, match="arms 0 to 1"):
            stack.append(2, z)
        with pytest.raises(IndexError, match="arm -1"):
            stack.set_theta(-1, z[0])
    with pytest.raises(ValueError, match="ridge"):
        Stack(arms=2, size=3, ridge=0.0)
    with pytest.raises(ValueError, match="arms"):
        Stack(arms=0, size=3, ridge=RIDGE)


def test_shapes_are_powers_of_two() -> None:
    assert [padded(count) for count in (1, 2, 3, 4, 5, 33, 1024)] == [1, 2, 4, 4, 8, 64, 1024]


class Graphs:
    """What a captured graph is, played on a CPU: it writes one and the same result each time, and knows addresses."""

    def __init__(self) -> None:
        self.captures = 0

    def captured(self, program: Callable[[], torch.Tensor], *, device: torch.device) -> Callable[[], torch.Tensor]:
        buffers = inspect.getclosurevars(program).nonlocals["self"]
        self.captures += 1
        at, result = self.addresses(buffers), program().clone()

        def replay() -> torch.Tensor:
            assert self.addresses(buffers) == at, "what the graph reads was moved"
            return result.copy_(program())

        return replay

    @staticmethod
    def addresses(buffers: DeviceBuffers) -> list[Any]:
        read = (buffers.inverse, buffers.columns, buffers.theta, buffers.z)
        return [buffers.arms, *(each.data_ptr() for each in read)]


def test_a_graph_reads_where_it_was_captured_and_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, sums = Graphs(), Sums(2, 4)
    monkeypatch.setattr("bandits.gpu.device_buffers.captured", graphs.captured)
    with Stack(arms=2, size=4, ridge=RIDGE, block=3, batch=8, threaded=True) as stack:
        for turn in range(12):
            arms, rows, z = [turn % stack.arms, 0], normal(turn, 2, 4), normal(50 + turn, 1 + 3 * (turn % 4), 4)
            sums.append(stack, arms, rows)
            flying = [stack.submit_scores(tensor(z + shift)) for shift in (0.0, 0.3, -0.2)]
            for shift, answer in zip((0.0, 0.3, -0.2), flying, strict=True):
                np.testing.assert_allclose(answer.result()[1].numpy(), sums.scores(z + shift)[1], rtol=1e-11)
            if turn == 8:
                assert graphs.captures == 4  # B = 1, 4, 7, 10: graphs of 1, 4, 8, and 8 + 2
            if turn in (8, 9):
                stack.add_arm()
                sums.grams.append(RIDGE * np.eye(4))
                sums.thetas.append(np.zeros(4))


# -- many threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threaded", "device"), DEVICES)
def test_a_reader_sees_a_write_whole_or_not_at_all(threaded: bool, device: str) -> None:
    """Writes of five columns and reads of eleven rows take several launches each: what a reader sees belongs to one moment."""
    row = normal(14, 1, 6)
    square = float(row[0] @ row[0])
    moments = np.sqrt(square / (RIDGE + 5 * np.arange(41) * square))
    z, sums = tensor(np.repeat(row, 11, 0)), Sums(1, 6)
    with Stack(
        arms=1, size=6, ridge=RIDGE, block=4, batch=4, device=torch.device(device), dtype=torch.float64, threaded=threaded
    ) as stack:
        start = threading.Barrier(5)

        def read() -> list[torch.Tensor]:
            start.wait()
            return [stack.scores(z)[1] for _ in range(25)]

        def write() -> None:
            start.wait()
            for _ in range(40):
                sums.append(stack, [0] * 5, np.repeat(row, 5, 0))

        with ThreadPoolExecutor(5) as pool:
            readers, writer = [pool.submit(read) for _ in range(4)], pool.submit(write)
            writer.result()
            for reader in readers:
                seen = []
                for width in reader.result():
                    assert float(width.max() - width.min()) < 1e-10
                    seen.append(int(np.abs(moments - float(width[0, 0])).argmin()))
                    assert abs(moments[seen[-1]] - float(width[0, 0])) < 1e-10
                assert seen == sorted(seen)
        np.testing.assert_allclose(stack.scores(z)[1].numpy(), moments[40], rtol=1e-11)


@pytest.mark.parametrize(("threaded", "device"), DEVICES)
def test_many_threads_get_each_their_own_answer(threaded: bool, device: str) -> None:
    sums = Sums(3, 5)
    with Stack(
        arms=3, size=5, ridge=RIDGE, batch=16, device=torch.device(device), dtype=torch.float64, threaded=threaded
    ) as stack:
        sums.append(stack, [0, 1, 1], normal(15, 3, 5))

        def ask(seed: int) -> float:
            z = normal(seed, 1 + seed % 40, 5)
            return float(np.abs(stack.scores(tensor(z))[1].numpy() - sums.scores(z)[1]).max())

        with ThreadPoolExecutor(8) as pool:
            assert max(pool.map(ask, range(160))) < 1e-11


# -- what CUDA has and a CPU has not -----------------------------------------------------------------------------------------


def test_the_precision_is_the_devices() -> None:
    assert scoring_dtype(CPU) == torch.float64
    assert scoring_dtype(torch.device("cuda")) == torch.float32


def test_tf32_is_refused_on_a_gpu_alone() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        check_precision(CPU)
        with pytest.raises(RuntimeError, match="TF32"):
            check_precision(torch.device("cuda"))
    finally:
        torch.set_float32_matmul_precision(before)


@cuda
def test_a_graph_sees_what_was_written_after_its_capture() -> None:
    row = normal(16, 1, 8)
    square, sums = float(row[0] @ row[0]), Sums(2, 8)
    with Stack(arms=2, size=8, ridge=RIDGE, block=2, device=torch.device("cuda")) as stack:
        stack.submit_warm().result()
        for n in range(7):
            width = stack.scores(tensor(row))[1][0]
            assert float(width[1]) == pytest.approx(np.sqrt(square / (RIDGE + n * square)), rel=1e-5)
            assert float(width[0]) == pytest.approx(np.sqrt(square / RIDGE), rel=1e-6)
            sums.append(stack, [1], row)
