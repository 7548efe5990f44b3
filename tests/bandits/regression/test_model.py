"""Lifted features that are remembered: the very numbers, whatever asks for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bandits.functional import kernels
from bandits.policies.dak_ucb import DakUcb
from bandits.policies.lin_ucb import LinUcb
from bandits.policies.pak_ucb import PakUcb
from bandits.regression import model as regression


def prompts(n: int, d: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(17).standard_normal((n, d)))


def counted(calls: list[Tensor]) -> regression.FeatureMap:
    def feature_map(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.cat([x.cos(), x.sin()], dim=-1)

    return feature_map


def test_a_prompt_is_lifted_once_alone_and_in_batches() -> None:
    calls: list[Tensor] = []
    feature_map, x = regression.CachedFeatureMap(counted(calls), size=6), prompts(5, 3)
    one, batch = feature_map(x[2]), feature_map(x)
    assert torch.equal(batch[2], one)
    assert torch.equal(feature_map(x), batch)
    assert sum(call.numel() for call in calls) == 5 * 3


def test_the_memory_goes_by_content_and_not_by_place() -> None:
    feature_map, x = regression.CachedFeatureMap(counted([]), size=6), prompts(1, 3)[0]
    before = feature_map(x).clone()
    x[1] += 0.25
    assert torch.equal(feature_map(x), torch.cat([x.cos(), x.sin()]))
    assert not torch.equal(feature_map(x), before)


def test_what_is_remembered_is_bounded() -> None:
    calls: list[Tensor] = []
    size = regression.REMEMBERED_BYTES // (8 * 16)
    feature_map, x = regression.CachedFeatureMap(counted(calls), size=size), prompts(17, 3)
    for row in (*x, x[0]):
        feature_map(row)
    assert len(calls) == 18  # 16 fit: the first was forgotten


def test_a_prompt_that_comes_twice_at_once_is_lifted_once_and_answered_twice() -> None:
    calls: list[Tensor] = []
    feature_map, x = regression.CachedFeatureMap(counted(calls), size=6), prompts(3, 3)
    found = feature_map.of_each([x[0], x[1], x[0], x[2]])
    assert [len(call) for call in calls] == [3]
    assert [z.tolist() for z in found] == [feature_map(row).tolist() for row in (x[0], x[1], x[0], x[2])]


def test_what_is_kept_of_a_batch_keeps_no_more_than_itself() -> None:
    feature_map = regression.CachedFeatureMap(counted([]), size=6)
    assert [z.untyped_storage().nbytes() for z in feature_map.of_each([*prompts(4, 3)])] == [48] * 4


WIDE = kernels.ONE_THREAD // 300 + 5
"""Random frequencies of prompts of 300 numbers that are multiplied in two parts."""


@pytest.mark.parametrize(
    "policy",
    [
        PakUcb(dim=4, add_linear=True),
        PakUcb(dim=31),
        PakUcb(dim=384, random_features=37),
        PakUcb(dim=300, random_features=WIDE, normalize=False),
        PakUcb(dim=7, random_features=None),
        LinUcb(dim=4),
        DakUcb(dim=9, output_dim=2, output_bandwidth=1.0, random_features=20),
        PakUcb(dim=1, random_features=1),
    ],
    ids=["added", "short", "long", "wide", "exact", "lin-ucb", "dak-ucb", "one"],
)
def test_policies_score_and_learn_the_same_numbers(policy: PakUcb | LinUcb | DakUcb) -> None:
    """A log promises the digest, which must not depend on what came together."""
    x = prompts(13, policy.dim)
    alone = [policy.feature_map(row) for row in x]
    for count in (1, 2, 5, 13):
        assert [z.tolist() for z in policy.feature_map(x[:count])] == [z.tolist() for z in alone[:count]]
        again = replace(policy)  # which remembers nothing
        assert [z.tolist() for z in again.regression.feature_map(x[:count])] == [z.tolist() for z in alone[:count]]


@pytest.mark.parametrize("function", [np.cos, np.sin])
def test_cosine_and_sine_depend_on_their_argument_alone(function: np.ufunc) -> None:
    """Neither on how many are asked for at once, nor on where they lie: vectors of a processor end somewhere."""
    x = 6.0 * np.random.default_rng(3).standard_normal(1100)
    alone = np.array([function(x[i : i + 1].copy())[0] for i in range(len(x))])
    for count in (*range(1, 70), 127, 128, 129, 255, 256, 257, 1024, 1091):
        for place in range(9):
            table = np.full((2, len(x) + 9), np.nan)
            function(x[place : place + count], out=table[1, place + 1 : place + 1 + count])
            assert np.array_equal(table[1, place + 1 : place + 1 + count], alone[place : place + count])
