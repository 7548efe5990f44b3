from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional.entropy import PEAK, divergence, entropy, optimistic_marginal


def t(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_of_uniform_of_one_class_and_of_a_bit() -> None:
    assert float(entropy(torch.full((7,), 1 / 7, dtype=torch.float64))) == pytest.approx(math.log(7), rel=1e-15)
    assert float(entropy(t([0.0, 1.0, 0.0]))) == 0.0
    assert float(entropy(t([0.3, 0.7]))) == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)), rel=1e-15)


def test_entropy_takes_the_last_dimension() -> None:
    assert entropy(t([[[0.5, 0.5], [1.0, 0.0]]])).tolist() == [[pytest.approx(math.log(2)), 0.0]]


@pytest.mark.parametrize(
    ("classes", "used", "doubt", "marginal_entropy", "mean_entropy", "score"),
    [
        (10, 10, 0.1, 2.3025850929940455, 0.5448054311250702, 5.799546134795287),
        (10, 5, 0.1, 1.8239970676105055, 0.5448054311250702, 3.5937335080384623),
        (10, 10, 0.5, 2.3025850929940455, 1.791759469228055, 1.6666666666666663),
        (10, 2, 0.01, 0.7563008686555363, 0.07797378012820955, 1.9705783700664286),
    ],
)
def test_golden_g1_arms_of_known_score(
    classes: int, used: int, doubt: float, marginal_entropy: float, mean_entropy: float, score: float
) -> None:
    rows = torch.full((used, classes), doubt / (classes - 1), dtype=torch.float64)
    rows[range(used), range(used)] = 1.0 - doubt  # one output of every class: exactly the marginal
    h_marginal, h_mean = float(entropy(rows.mean(0))), float(entropy(rows).mean())
    assert h_marginal == pytest.approx(marginal_entropy, abs=1e-9)
    assert h_mean == pytest.approx(mean_entropy, abs=1e-9)
    assert math.exp(h_marginal - h_mean) == pytest.approx(score, abs=1e-9)
    assert math.exp(float(divergence(rows, rows.mean(0)).mean())) == pytest.approx(score, abs=1e-9)


def test_divergence_is_zero_only_for_equals_and_infinite_outside_the_support() -> None:
    p, q = t([0.2, 0.8, 0.0]), t([0.5, 0.25, 0.25])
    assert float(divergence(p, p)) == 0.0
    assert float(divergence(p, q)) == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(3.2), rel=1e-14)
    assert float(divergence(q, p)) == math.inf


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(1e-6, 1.2))
def test_the_optimistic_class_is_the_best_within_its_radius(p: float, radius: float) -> None:
    grid = np.clip(np.linspace(p - radius, p + radius, 4001), 1e-300, None)
    best = float((-grid * np.log(grid)).max())
    moved = optimistic_marginal(t([p]), t([radius]))
    assert float(entropy(moved)) == pytest.approx(best, abs=1e-6)
    assert abs(float(moved) - p) <= radius + 1e-15


def test_golden_g3_marginal_moves_down_to_the_peak_and_up() -> None:
    radius = t([0.021991880458208265, 0.02158118732262607, 0.01944696633143477])
    marginal = t([0.4, 0.375, 0.225])
    moved = optimistic_marginal(marginal, radius)
    assert moved.tolist() == pytest.approx([0.37800811954180447, 0.36787944117144233, 0.24444696633144228], abs=1e-9)
    assert float(entropy(moved)) == pytest.approx(1.0799870607956885, abs=1e-9)
    assert marginal.tolist() == [0.4, 0.375, 0.225]  # the running marginal is left alone


def test_a_class_at_the_peak_stays_and_an_infinite_radius_reaches_it() -> None:
    assert optimistic_marginal(t([PEAK, 0.0, 1.0]), t([0.0, math.inf, math.inf])).tolist() == [PEAK, PEAK, PEAK]
