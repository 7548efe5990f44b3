from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional import quality


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


LINE = column(0.0, 1.0, 3.0, 7.0)  # second nearest other points: 3, 2, 3, 6 away


def test_a_radius_reaches_the_kth_nearest_other_point() -> None:
    assert quality.neighbor_radii(LINE, neighbors=1).tolist() == [1.0, 1.0, 2.0, 4.0]
    assert quality.neighbor_radii(LINE, neighbors=2).tolist() == [3.0, 2.0, 3.0, 6.0]
    assert quality.neighbor_radii(LINE, neighbors=3).tolist() == [7.0, 6.0, 4.0, 7.0]


def test_precision_is_membership_and_density_counts_it() -> None:
    radii = quality.neighbor_radii(LINE, neighbors=2)
    x = column(0.5, -2.9, -3.0, 6.5, 13.5)  # |x - y| < radius(y), strictly
    assert quality.memberships(x, LINE, radii).tolist() == [3, 1, 0, 1, 0]
    assert quality.precision(x, LINE, radii).tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert quality.density(x, LINE, radii, neighbors=2).tolist() == [1.5, 0.5, 0.0, 0.5, 0.0]


def test_a_point_on_the_border_is_outside() -> None:
    radii = quality.neighbor_radii(LINE, neighbors=1)
    assert quality.memberships(column(11.0, 10.999999, -1.0), LINE, radii).tolist() == [0, 1, 0]


def test_duplicates_of_the_reference_have_radius_zero_and_hold_nothing() -> None:
    far = torch.full((3, 2), 1e5, dtype=torch.float64)  # where |x|^2 + |y|^2 - 2 x.y has lost six digits
    reference = torch.cat([far, far + torch.tensor([[0.3, 0.1]], dtype=torch.float64)])
    radii = quality.neighbor_radii(reference, neighbors=2)
    assert radii.tolist() == [0.0] * 6
    assert quality.precision(far[:1], reference, radii).tolist() == [0.0]


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    reference, x = 1e-4 * LINE + 1e5, 1e-4 * column(0.5, -2.5, -3.5, 6.5, 13.5) + 1e5
    radii = quality.neighbor_radii(reference, neighbors=2)
    assert quality.memberships(x, reference, radii).tolist() == [3, 1, 0, 1, 0]


def test_too_small_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 4 reference points, there are 4"):
        quality.neighbor_radii(LINE, neighbors=4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(7, 30), st.sampled_from([0.0, 1e4]))
def test_quality_equals_its_definition(seed: int, neighbors: int, n: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    reference, x = rng.standard_normal((n, 3)) + offset, 1.5 * rng.standard_normal((8, 3)) + offset
    distances = np.linalg.norm(reference[:, None] - reference[None], axis=2)
    radii = np.sort(distances, axis=1)[:, neighbors]  # itself is the nearest, at 0
    inside = (np.linalg.norm(x[:, None] - reference[None], axis=2) < radii).sum(1)
    found = quality.neighbor_radii(torch.from_numpy(reference), neighbors=neighbors)
    np.testing.assert_allclose(found.numpy(), radii, rtol=1e-12)
    rows = torch.from_numpy(x)
    assert quality.memberships(rows, torch.from_numpy(reference), found).tolist() == inside.tolist()
    one_by_one = [quality.memberships(row[None], torch.from_numpy(reference), found) for row in rows]
    assert torch.cat(one_by_one).tolist() == inside.tolist()


def test_many_points_are_taken_in_blocks() -> None:
    reference = torch.from_numpy(np.random.default_rng(0).standard_normal((quality.BLOCK + 37, 2)))
    expected = torch.cdist(reference, reference).sort(dim=1).values[:, 5]
    torch.testing.assert_close(quality.neighbor_radii(reference, neighbors=5), expected, rtol=1e-6, atol=1e-9)
