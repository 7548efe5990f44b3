"""Lifted features that are remembered: the very numbers, whatever asks for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

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
    feature_map, x = regression.cached_feature_map(counted(calls), size=6), prompts(5, 3)
    one, batch = feature_map(x[2]), feature_map(x)
    assert torch.equal(batch[2], one)
    assert torch.equal(feature_map(x), batch)
    assert len(calls) == 5


def test_the_memory_goes_by_content_and_not_by_place() -> None:
    feature_map, x = regression.cached_feature_map(counted([]), size=6), prompts(1, 3)[0]
    before = feature_map(x).clone()
    x[1] += 0.25
    assert torch.equal(feature_map(x), torch.cat([x.cos(), x.sin()]))
    assert not torch.equal(feature_map(x), before)


def test_what_is_remembered_is_bounded() -> None:
    calls: list[Tensor] = []
    size = regression.REMEMBERED_BYTES // (8 * 16)
    feature_map, x = regression.cached_feature_map(counted(calls), size=size), prompts(17, 3)
    for row in (*x, x[0]):
        feature_map(row)
    assert len(calls) == 18  # 16 fit: the first was forgotten


@pytest.mark.parametrize("policy", [PakUcb(dim=4, add_linear=True), LinUcb(dim=4)], ids=["pak-ucb", "lin-ucb"])
def test_policies_score_and_learn_the_same_numbers(policy: PakUcb | LinUcb) -> None:
    x = prompts(6, 4)
    for row, alone in zip(policy.regression.feature_map(x), x, strict=True):
        assert torch.equal(row, policy.feature_map(alone))
