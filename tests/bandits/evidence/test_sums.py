"""The sums of an arm against plain ones, and their memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from numpy.testing import assert_allclose

from bandits.evidence import posterior as posteriors
from bandits.evidence.basis import Basis
from bandits.evidence.features import EvidenceFeatures
from bandits.evidence.posterior import Preparation
from bandits.evidence.sums import HELD, EvidenceArm, pooled
from tests.bandits.evidence.runs import tensor

MEGABYTE = 2**20


def folded(features: EvidenceFeatures, values: np.ndarray, *, seed: int = 0) -> tuple[EvidenceArm, np.ndarray]:
    """An arm with these outcomes (n, S), and its prompts' features (n, p)."""
    arm, g = EvidenceArm.init(size=features.size, signals=values.shape[1]), default_rng(seed)
    rows = []
    for one in values:
        x = tensor(g.standard_normal(features.dim))
        rows.append(features.lift(x).z)
        arm = arm.update(x, rows[-1], one, features)
    return arm, np.array(rows)


@pytest.mark.parametrize("outcomes", [1, HELD - 1, HELD, 2 * HELD + 5])
@pytest.mark.parametrize("dim", [0, 3])
def test_sums_are_those_of_all_outcomes(outcomes: int, dim: int) -> None:
    features = EvidenceFeatures(dim, seed=2)
    values = default_rng(1).standard_normal((outcomes, 2))
    arm, z = folded(features, values)
    assert arm.pulls == arm.answered == outcomes
    assert_allclose(pooled([arm.grams[0]], features), z.T @ z, atol=1e-10)
    assert_allclose(arm.moments, values.T @ z, atol=1e-10)
    assert_allclose(arm.squares, (values**2).sum(0))
    basis = Basis.of(z.T @ z, features.blocks, arms=2)
    w = np.stack([basis.project(one) for one in z])
    assert_allclose(arm.grams[0].projected(basis, features), w.T @ w, atol=1e-9)


def test_each_signal_is_summed_over_the_outcomes_that_carry_it() -> None:
    """Four signals with four patterns of absence; the Gram matrix of each is that of its own outcomes."""
    features, g = EvidenceFeatures(2, seed=0), default_rng(4)
    values = g.standard_normal((150, 4))
    for signal, share in ((1, 0.9), (2, 0.2)):
        values[g.random(150) < share, signal] = np.nan
    values[:, 3] = np.nan
    arm, z = folded(features, values)
    for signal in range(4):
        carrying = np.isfinite(values[:, signal])
        assert arm.gram(signal).count == carrying.sum()
        assert_allclose(pooled([arm.gram(signal)], features), z[carrying].T @ z[carrying], atol=1e-10)
        assert_allclose(arm.moments[signal], values[carrying, signal] @ z[carrying], atol=1e-10)
    assert arm.grams[0].count == 150


def test_signals_that_are_missing_together_share_a_gram_matrix() -> None:
    values = default_rng(4).standard_normal((30, 3))
    values[7:20, 1:] = np.nan
    arm, _ = folded(EvidenceFeatures(2, seed=0), values)
    assert len(arm.grams) == 2
    assert arm.gram_of.tolist() == [0, 1, 1]


# -- memory ------------------------------------------------------------------------------------------------------------------


def owned(found: Any) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every array in a value."""
    if isinstance(found, torch.Tensor):
        yield found.data_ptr(), found.numel() * found.element_size()
    elif isinstance(found, np.ndarray):
        base = found.base if isinstance(found.base, np.ndarray) else found  # a view keeps all of its base
        yield base.ctypes.data, base.nbytes
    elif isinstance(found, bytes):
        yield id(found), len(found)
    elif is_dataclass(found):
        for one in fields(found):
            yield from owned(getattr(found, one.name))
    elif isinstance(found, tuple):
        for one in found:
            yield from owned(one)


def size(*found: Any) -> float:
    """Megabytes of all arrays, each counted once."""
    return sum(dict(owned(found)).values()) / MEGABYTE


@pytest.mark.parametrize(("dim", "limit"), [(384, 20.0), (1536, 40.0)])
def test_memory_of_ten_arms(dim: int, limit: float) -> None:
    """Sums with as many held prompts as there can be, and posterior."""
    features = EvidenceFeatures(dim, seed=0)
    arm, _ = folded(features, default_rng(1).standard_normal((2 * HELD - 1, 1)))
    assert len(arm.grams[0].held) == HELD - 1
    arms = tuple(folded_copy(arm) for _ in range(10))
    posterior = posteriors.prepare(Preparation(1270, arms, (True,) * 10, has_all=True), None, features, signals=1)
    assert limit / 2 < size(arms, posterior) <= limit


def folded_copy(arm: EvidenceArm) -> EvidenceArm:
    """With arrays of its own, as ten arms have."""
    gram = arm.grams[0]
    copy = type(gram)(gram.count, gram.tiles.clone(), tuple(x.clone() for x in gram.held))
    return EvidenceArm(arm.pulls, arm.answered, (copy,), arm.gram_of.clone(), arm.moments.clone(), arm.squares.clone(), ())


def test_a_signal_that_never_comes_costs_no_memory() -> None:
    values = default_rng(1).standard_normal((2 * HELD, 2))
    features = EvidenceFeatures(64, seed=0)
    without, _ = folded(features, values[:, :1])
    values[:, 1] = np.nan
    with_it, _ = folded(features, values)
    assert size(with_it) - size(without) < 0.02


def test_memory_of_a_preparation_is_bounded() -> None:
    """A hundred arms and long prompts: no dense matrix per arm is held."""
    features = EvidenceFeatures(1536, seed=0)
    arm, _ = folded(features, default_rng(1).standard_normal((HELD + 3, 1)))
    due = Preparation(100 * arm.pulls, (arm,) * 100, (True,) * 100, has_all=True)
    tracemalloc.start()
    try:
        posteriors.prepare(due, None, features, signals=1)
        assert tracemalloc.get_traced_memory()[1] < 60 * MEGABYTE
    finally:
        tracemalloc.stop()
