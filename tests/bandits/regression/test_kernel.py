"""The statistic of an exact kernel against fresh dense solvers: what is pending, what is remembered, branches, forgetting."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from torch import Tensor

from bandits.functional import kernels
from bandits.regression.kernel import REMEMBERED, KernelArm, KernelPosterior

RIDGE = 0.35


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2), by differences."""
    return torch.exp(-(x[:, None] - y[None]).square().sum(2))


def points(seed: int, n: int, d: int = 3) -> Tensor:
    return 0.6 * torch.from_numpy(default_rng(seed).standard_normal((n, d)))


def learn(arm: KernelArm, x: Tensor, target: float, *, was_pending: bool = False, max_samples: int = 1000) -> KernelArm:
    return arm.update(x, target, kernel=gaussian, ridge=RIDGE, max_samples=max_samples, was_pending=was_pending)


def mark_pending(arm: KernelArm, x: Tensor) -> KernelArm:
    return arm.add_pending(x, kernel=gaussian, ridge=RIDGE)


def release(arm: KernelArm, x: Tensor) -> KernelArm:
    return arm.remove_pending(x, kernel=gaussian, ridge=RIDGE)


def score(arm: KernelArm, x: Tensor) -> tuple[Tensor, Tensor]:
    return arm.score(x, kernel=gaussian, prior=torch.ones(len(x), dtype=torch.float64), ridge=RIDGE)


def arm_of(n: int, seed: int = 1) -> KernelArm:
    arm = KernelArm.init(3)
    for i, x in enumerate(points(seed, n)):
        arm = learn(arm, x, 0.1 * i - 0.4)
    return arm


@dataclass
class Plain:
    """The same by lists and dense solvers."""

    seen: list[Tensor] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)

    def score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.zeros(len(x), dtype=torch.float64)
        if self.seen:
            rows = torch.stack(self.seen)
            dual = torch.linalg.solve(
                gaussian(rows, rows) + RIDGE * torch.eye(len(rows), dtype=torch.float64),
                torch.tensor(self.targets, dtype=torch.float64),
            )
            mean = gaussian(x, rows) @ dual
        every = self.seen + self.pending
        if not every:
            return mean, torch.full_like(mean, 1.0 / RIDGE).sqrt()
        rows = torch.stack(every)
        k = gaussian(rows, x)
        solved = torch.linalg.solve(gaussian(rows, rows) + RIDGE * torch.eye(len(rows), dtype=torch.float64), k)
        return mean, ((1.0 - (k * solved).sum(0)) / RIDGE).sqrt()


def assert_scores(arm: KernelArm, plain: Plain, x: Tensor) -> None:
    for found, expected in zip(score(arm, x), plain.score(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# -- pending decisions -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "decide", "outcome", "unexpected", "expire"]), st.integers(0, 40)), max_size=40
    ),
    limit=st.sampled_from([8, 1000]),
)
def test_whatever_comes_in_whatever_order_the_scores_are_those_of_a_dense_solver(
    steps: list[tuple[str, int]], limit: int
) -> None:
    """Asked, decided, outcomes in disorder and of other prompts, the same prompt twice, expiries, forgetting."""
    world, arm, plain = points(2, 12), KernelArm.init(3), Plain()
    for t, (step, number) in enumerate(steps):
        x, target = world[number % 12], 0.07 * number - 0.3
        if step == "ask":
            assert_scores(arm, plain, world[number % 12 : number % 12 + 1 + number % 3])
        elif step == "decide":
            arm, plain.pending = mark_pending(arm, x.clone()), [*plain.pending, x]
        elif step == "expire" and plain.pending:
            arm = release(arm, plain.pending.pop(number % len(plain.pending)).clone())
        elif step in ("outcome", "unexpected"):
            if len(plain.seen) >= limit:
                plain.seen, plain.targets = plain.seen[-6:], plain.targets[-6:]
            was_pending = step == "outcome" and bool(plain.pending)
            x = plain.pending.pop(number % len(plain.pending)) if was_pending else x
            arm = learn(arm, x.clone(), target, was_pending=was_pending, max_samples=limit)
            plain.seen, plain.targets = [*plain.seen, x], [*plain.targets, target]
        if t % 7 == 0:
            assert_scores(arm, plain, world[:4])
    assert_scores(arm, plain, world)


def test_an_outcome_that_nothing_waited_for_shrinks_the_width_all_the_same() -> None:
    """`was_pending` for an arm that knows of no such decision: it is counted once, as any outcome is."""
    x = points(3, 1)[0]
    one, other = learn(arm_of(9), x, 0.5, was_pending=True), learn(arm_of(9), x, 0.5)
    for found, expected in zip(score(one, points(4, 5)), score(other, points(4, 5)), strict=True):
        assert torch.equal(found, expected)


def test_a_release_of_what_is_not_pending_changes_nothing() -> None:
    arm = mark_pending(arm_of(6), points(5, 1)[0])
    assert release(arm, points(5, 2)[1]) is arm


def test_pending_decisions_and_their_releases_leave_older_versions_alone() -> None:
    arm, q = arm_of(70), points(6, 6)
    versions, before = [arm], []
    for x in points(7, 4):
        versions.append(mark_pending(versions[-1], x))
    before = [score(version, q)[1] for version in versions]
    for x in points(7, 4):
        learn(versions[-1], x, 1.0, was_pending=True)
        release(versions[-1], x)
    for version, width in zip(versions, before, strict=True):
        fresh = KernelArm(version.pulls, version.features, version.targets)
        for x in points(7, 4)[: len(version.cache.pending if version.cache else ())]:
            fresh = mark_pending(fresh, x)
        torch.testing.assert_close(score(fresh, q)[1], width, rtol=1e-11, atol=1e-12)
        assert torch.equal(score(version, q)[1], width)


def test_a_ridge_of_nearly_nothing_breaks_no_factor_of_pending_prompts() -> None:
    """The same prompt pending many times over: what is left for it to explain is rounding alone."""
    arm, x = KernelArm.init(3), points(8, 1)[0]
    for _ in range(5):
        arm = arm.add_pending(x, kernel=gaussian, ridge=1e-13)
    for _ in range(2):
        arm = arm.update(x, 0.5, kernel=gaussian, ridge=1e-13, max_samples=10, was_pending=True)
        arm = arm.remove_pending(x, kernel=gaussian, ridge=1e-13)
    mean, width = arm.score(points(8, 3), kernel=gaussian, prior=torch.ones(3, dtype=torch.float64), ridge=1e-13)
    assert bool(mean.isfinite().all() and width.isfinite().all())


# -- what is remembered ----------------------------------------------------------------------------------------------------


def counted(arm: KernelArm, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that each further solve has to compute."""
    rows: list[int] = []
    kind = type(arm.posterior(gaussian, RIDGE).factor)
    solve = kind.solve

    def watched(self: object, right: Tensor, *, after: Tensor | None = None) -> Tensor:
        rows.append(len(right))
        return solve(self, right, after=after)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "solve", watched)
    return rows


def test_a_round_solves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored, decided, its outcome learned, in batches or alone; after other outcomes, only the rows that came since."""
    arm, x = arm_of(90), points(9, 4)
    rows = counted(arm, monkeypatch)
    score(arm, x[:1])
    arm = learn(arm, x[0].clone(), 0.2)
    assert rows == [90]
    score(arm, x)
    arm = mark_pending(arm, x[2].clone())
    arm = learn(arm, x[2].clone(), 0.2, was_pending=True)
    assert rows == [90, 91]
    score(arm, x[3:])
    assert rows == [90, 91, 1], "the batch was asked one outcome ago"
    arm = learn(arm, points(10, 1)[0], 0.2)
    assert rows == [90, 91, 1, 92]


def test_scores_from_memory_are_those_of_a_fresh_factor() -> None:
    arm, x = arm_of(75), points(11, 5)
    score(arm, x)
    for target in (0.3, 0.9, -0.2):
        arm = learn(arm, x[0], target)
        fresh = KernelArm(arm.pulls, arm.features.clone(), arm.targets.clone())
        for found, expected in zip(score(arm, x), score(fresh, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        assert fresh.posterior(gaussian, RIDGE).factor.factor.allclose(arm.posterior(gaussian, RIDGE).factor.factor, rtol=1e-11)


def test_memory_goes_by_value_and_not_by_address() -> None:
    """The caller's tensor is written over after it was asked, in place: another prompt at the same address."""
    arm, x = arm_of(40), points(12, 1)
    first = score(arm, x)[0].clone()
    x += 0.25
    second = score(arm, x)[0]
    assert abs(float(second - first)) > 1e-3
    torch.testing.assert_close(second, score(arm_of(40), x)[0], rtol=1e-12, atol=1e-13)
    x -= 0.25
    torch.testing.assert_close(score(arm, x)[0], first, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("apart", [1e-13, 1e-9, 0.5])
def test_a_prompt_that_differs_is_another(apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    arm, x = arm_of(30), points(13, 1)
    rows = counted(arm, monkeypatch)
    score(arm, x)
    other = x.clone()
    other[0, 2] *= 1.0 + apart
    score(arm, other)
    assert rows == [30, 30]
    other[0, 2] *= 1.0 + 2e-16  # the last bit, which another way of scaling may round otherwise
    score(arm, other)
    assert rows == [30, 30]


def test_what_one_branch_asked_means_nothing_to_another() -> None:
    """Two outcomes learned from one state: the same prompt has other shadows in either, from the row where they part."""
    trunk, q = arm_of(50), points(14, 2)
    score(trunk, q)
    one, other = learn(trunk, points(15, 2)[0], 0.9), learn(trunk, points(15, 2)[1], -0.9)
    for arm in (one, other, trunk, one):
        fresh = KernelArm(arm.pulls, arm.features.clone(), arm.targets.clone())
        for found, expected in zip(score(arm, q), score(fresh, q), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_memory_is_bounded() -> None:
    arm = arm_of(20)

    def kept(dual: KernelPosterior) -> int:
        return dual.asked[0][1].numel() if dual.asked[0] else 0

    score(arm, points(16, 3))
    score(arm, points(17, 2))
    assert kept(arm.posterior(gaussian, RIDGE)) == 2 * 20, "those of the last score alone"
    score(arm, points(18, REMEMBERED + 1))
    assert kept(arm.posterior(gaussian, RIDGE)) == 2 * 20, "a larger batch is not kept"


def test_forgetting_keeps_what_is_pending_and_nothing_that_was_remembered() -> None:
    arm, x = arm_of(8), points(19, 6)
    arm = mark_pending(mark_pending(arm, x[0]), x[1])
    score(arm, x)
    arm = learn(arm, x[1], 0.4, was_pending=True, max_samples=8)
    plain = Plain([*points(1, 8)[-6:], x[1]], [*(0.1 * i - 0.4 for i in range(2, 8)), 0.4], [x[0]])
    assert_scores(arm, plain, x)


def test_the_kernel_of_the_package_serves_as_well() -> None:
    """By expanded squares, on prompts of length one: those of the policies."""
    x = points(20, 30, d=12)
    x, q = x / x.norm(dim=1, keepdim=True), torch.nn.functional.normalize(points(21, 4, d=12))

    def k(a: Tensor, b: Tensor) -> Tensor:
        return kernels.gaussian(a, b, bandwidth=0.5**0.5)

    arm, plain = KernelArm.init(12), Plain()
    for i, row in enumerate(x):
        arm = arm.update(row, 0.1 * i, kernel=k, ridge=RIDGE, max_samples=100, was_pending=False)
        plain.seen, plain.targets = [*plain.seen, row], [*plain.targets, 0.1 * i]
    found = arm.score(q, kernel=k, prior=torch.ones(4, dtype=torch.float64), ridge=RIDGE)
    for ours, expected in zip(found, plain.score(q), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
