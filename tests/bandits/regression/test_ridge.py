"""Sums of a ridge regression in blocks: the same bits however the rows came together, and the numbers of one plain sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits.regression.ridge import BLOCK, RidgeArm

P, N, RIDGE = 9, 3 * BLOCK + 5, 0.7


def rows() -> tuple[list[Tensor], list[float]]:
    g = np.random.default_rng(3)
    return [torch.from_numpy(row) for row in g.standard_normal((N, P))], g.standard_normal(N).tolist()


def batched(cuts: list[int], *, layout: int = 2, derives: bool = False) -> RidgeArm:
    """All rows, taken in together between two cuts. derives: with everything that is derived along the way."""
    z, targets = rows()
    arm = RidgeArm.init(P)
    for start, end in zip([0, *cuts], [*cuts, N], strict=True):
        if derives:
            arm.ridge(RIDGE)
        if end - start == 1:
            arm = arm.update(z[start], targets[start], ridge=RIDGE, was_pending=False, layout=layout)
        elif end > start:
            arm = arm.update_many(z[start:end], targets[start:end], was_pending=[False] * (end - start), layout=layout)
    return arm


def bits(arm: RidgeArm) -> tuple[bytes, ...]:
    return tuple(one.contiguous().numpy().tobytes() for one in (arm.gram, arm.moment, *arm.held))


@pytest.mark.parametrize("layout", [1, 2])
def test_the_sums_do_not_depend_on_what_came_together(layout: int) -> None:
    g, one_by_one = np.random.default_rng(4), batched(list(range(1, N)), layout=layout)
    for _ in range(30):
        cuts = sorted(g.choice(np.arange(1, N), size=g.integers(0, 12), replace=False).tolist())
        assert bits(batched(cuts, layout=layout, derives=bool(g.integers(2)))) == bits(one_by_one), cuts
    assert bits(batched([], layout=layout)) == bits(one_by_one)
    assert bits(batched([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK], layout=layout)) == bits(one_by_one)


def test_an_open_block_is_part_of_everything_that_is_derived() -> None:
    z, targets = rows()
    x, y = torch.stack(z), torch.tensor(targets, dtype=torch.float64)
    arm = batched(list(range(1, N)))
    assert arm.pulls == N
    assert len(arm.held) == N % BLOCK > 0
    torch.testing.assert_close(arm.whole_gram, x.T @ x, rtol=1e-12, atol=1e-12)
    inverse = torch.linalg.inv(x.T @ x + RIDGE * torch.eye(P, dtype=torch.float64))
    for derived in (arm, batched(list(range(1, N)), derives=True)):
        torch.testing.assert_close(derived.ridge(RIDGE).inverse.tensor(), inverse, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(derived.ridge(RIDGE).theta, inverse @ (x.T @ y), rtol=1e-10, atol=1e-12)


def test_before_layout_2_every_row_is_added_by_itself() -> None:
    """Logs of earlier versions fold to the digests that they had."""
    gram = torch.zeros((P, P), dtype=torch.float64)
    for z in rows()[0]:
        gram = torch.addr(gram, z, z)
    arm = batched([7, 40], layout=1)
    assert not arm.held
    assert torch.equal(arm.gram, gram)
    torch.testing.assert_close(batched([7, 40]).whole_gram, gram, rtol=1e-12, atol=1e-12)


def test_an_earlier_version_keeps_its_sums() -> None:
    z, targets = rows()
    arm, history = RidgeArm.init(P), []
    for row, target in zip(z, targets, strict=True):
        history.append((arm, bits(arm)))
        arm = arm.update(row, target, ridge=RIDGE, was_pending=False)
    assert all(bits(one) == then for one, then in history)


def test_pending_pairs_are_carried_to_an_arm_with_another_open_block() -> None:
    """What is pending is the width beyond the pairs that were learned, those of the open block included."""
    z, _ = rows()
    old, new = batched([5]).add_pending(z[0], ridge=RIDGE).add_pending(z[1], ridge=RIDGE), RidgeArm.init(P)
    new = new.update(z[2], 0.5, ridge=RIDGE, was_pending=False).with_pending_of(old, ridge=RIDGE)
    known = torch.stack(z[:3])
    wanted = torch.linalg.inv(known.T @ known + RIDGE * torch.eye(P, dtype=torch.float64))
    torch.testing.assert_close(new.ridge(RIDGE).pending_inverse.tensor(), wanted, rtol=1e-8, atol=1e-9)
