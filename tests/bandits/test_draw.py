"""From scores to a distribution, and from a distribution to an arm."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits import draw
from bandits.types import Context


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def contexts(*allowed: tuple[bool, ...], pending: tuple[int, ...] = ()) -> list[Context]:
    return [Context(allowed=row, pending=pending) for row in allowed]


# -- draw -------------------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_its_key_alone() -> None:
    row = weights(0.2, 0.5, 0.3)
    once = [draw.draw(row, f"bandit/7/{i}") for i in range(200)]
    torch.manual_seed(1)
    np.random.default_rng(1).random(5)
    assert [draw.draw(row, f"bandit/7/{i}") for i in range(200)] == once
    assert len({picked.arm for picked in once}) == 3


def test_the_number_behind_a_key_is_the_top_of_its_sha256() -> None:
    """From the log every draw can be derived again, in any language."""
    key = "tenant/demo/7/0198-b"
    top = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)
    assert draw.uniform(key) == (top >> 11) / 2**53
    assert draw.uniform("") == 0xE3B0C44298FC1C14 // 2048 / 2**53


def test_arms_come_as_often_as_their_weights_say() -> None:
    row = weights(0.15, 0.0, 0.6, 0.25)
    counts = np.bincount([draw.draw(row, str(i)).arm for i in range(20_000)], minlength=4) / 20_000
    assert counts[1] == 0.0
    assert counts.tolist() == pytest.approx(row.tolist(), abs=4 * 0.5 / np.sqrt(20_000))


def test_zeros_mean_stop() -> None:
    assert draw.draw(torch.zeros(4), "any key") == draw.Draw(draw.STOP, 1.0)


@settings(deadline=None)
@given(
    parts=st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1.0)), min_size=1, max_size=12).filter(any),
    u=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.just(1.0 - 2.0**-53)),
)
def test_any_number_draws_an_arm_that_has_weight(parts: list[float], u: float) -> None:
    row = torch.tensor(parts, dtype=torch.float64)
    row = row / row.sum()
    picked = draw.draw_at(row, u)
    assert row[picked.arm] > 0.0
    assert picked.propensity == float(row[picked.arm])
    assert float(row[: picked.arm].sum()) <= u + 1e-9
    assert u <= float(row[: picked.arm + 1].sum()) + 1e-9


# -- burn-in ----------------------------------------------------------------------------------------------------------------


def test_the_arm_with_fewest_pulls_comes_first_and_ties_go_to_the_lowest_index() -> None:
    everyone = (True, True, True)
    assert draw.burn_in_arms([2, 1, 1], contexts(everyone), 3) == [1]
    assert draw.burn_in_arms([2, 1, 1], contexts(everyone, pending=(0, 2, 0)), 3) == [2]
    assert draw.burn_in_arms([2, 1, 1], contexts((True, False, False)), 3) == [0]
    assert draw.burn_in_arms([3, 3, 3], contexts(everyone), 3) == [-1]
    assert draw.burn_in_arms([2, 3, 3], contexts(everyone, pending=(1, 0, 0)), 3) == [-1], "what is pending will come"
    assert draw.burn_in_arms([0, 0, 0], contexts(everyone), 0) == [-1]


def test_the_rows_of_one_call_count_for_each_other() -> None:
    assert draw.burn_in_arms([0, 0, 0], contexts(*[(True, True, True)] * 8), 2) == [0, 1, 2, 0, 1, 2, -1, -1]
    mixed = contexts((True, True, False), (False, True, True), (True, True, True), (False, True, False))
    assert draw.burn_in_arms([0, 0, 0], mixed, 1) == [0, 1, 2, -1]


@settings(deadline=None)
@given(
    pulls=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    rows=st.integers(1, 30),
    initial=st.integers(0, 5),
)
def test_a_burn_in_gives_every_arm_its_first_pulls_and_no_more(pulls: list[int], rows: int, initial: int) -> None:
    chosen = draw.burn_in_arms(pulls, contexts(*[(True,) * len(pulls)] * rows), initial)
    missing = sum(max(initial - n, 0) for n in pulls)
    assert sum(arm >= 0 for arm in chosen) == min(rows, missing)
    total = [n + chosen.count(arm) for arm, n in enumerate(pulls)]
    assert all(after <= max(before, initial) for before, after in zip(pulls, total, strict=True))


# -- distributions ----------------------------------------------------------------------------------------------------------


def test_the_best_allowed_arm_gets_all_weight_and_ties_go_to_the_lowest_index() -> None:
    scores = torch.tensor([[0.3, 0.9, 0.9], [0.3, 0.9, 0.2], [-5.0, -7.0, -6.0]])
    allowed = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    assert draw.greedy_weights(scores, allowed).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert draw.greedy_weights(scores, allowed).dtype == torch.float64


def test_an_arm_that_scores_minus_infinity_is_still_chosen_when_it_is_the_only_one_allowed() -> None:
    scores = torch.tensor([[-torch.inf, 4.0]])
    assert draw.greedy_weights(scores, torch.tensor([[True, False]])).tolist() == [[1.0, 0.0]]


def test_the_floor_is_shared_by_the_allowed_arms_and_leaves_a_stop_a_stop() -> None:
    allowed = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])
    values = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    kept = values.clone()
    mixed = draw.apply_burn_in_and_floor(values, [-1, 0, -1], allowed, floor=0.3)
    assert mixed[0].tolist() == pytest.approx([0.1, 0.8, 0.1, 0.0])
    assert mixed[1].tolist() == pytest.approx([0.85, 0.15, 0.0, 0.0]), "burn-in, then the floor"
    assert mixed[2].tolist() == [0.0] * 4
    assert torch.equal(values, kept), "what it is given is not written to"


def test_without_burn_in_and_floor_nothing_changes() -> None:
    values = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert torch.equal(draw.apply_burn_in_and_floor(values, [-1], torch.ones((1, 2), dtype=torch.bool), floor=0.0), values)
