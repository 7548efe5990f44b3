import numpy as np
import pytest

from examples.digits import digits_table, nearest_mean, thumbnails
from service.cli.replay.tables import Table


@pytest.fixture(scope="module")
def table() -> Table:
    return digits_table()


def test_the_prompts_are_digits_that_no_model_was_trained_on(table: Table) -> None:
    assert len(table.prompts) == 1797 - 600
    assert table.vectors.shape == (1197, 64)
    assert 0.0 <= table.vectors.min() < table.vectors.max() <= 1.0


def test_a_specialist_is_never_right_on_the_digits_that_it_never_saw(table: Table) -> None:
    right = table.rewards + table.costs
    assert set(np.unique(right.round(9))) == {0.0, 1.0}
    low = np.array([int(group) < 5 for group in table.groups])
    for arm, knows in (("only-0-to-4", low), ("only-5-to-9", ~low)):
        of_arm = right[:, table.arms.index(arm)]
        assert of_arm[~knows].sum() == 0
        assert of_arm[knows].mean() > 0.95


def test_strength_follows_price_and_no_fixed_model_is_as_good_as_knowing_whom_to_ask(table: Table) -> None:
    right, earned = (table.rewards + table.costs).mean(axis=0), table.rewards.mean(axis=0)
    generalists = [table.arms.index(arm) for arm in ("thumbnail", "nearest-mean", "kernel-machine")]
    assert right[generalists].tolist() == sorted(right[generalists])
    assert table.costs[0, generalists].tolist() == sorted(table.costs[0, generalists])
    assert 0.7 < right[generalists[0]] < 0.85
    assert right[generalists[2]] > 0.97
    assert earned.max() < 0.85 < 0.95 < table.rewards.max(axis=1).mean()


def test_a_thumbnail_is_the_mean_of_four_pixels() -> None:
    image = np.arange(64.0)[None]
    assert thumbnails(image)[0, [0, 1, 4, 15]].tolist() == [4.5, 6.5, 20.5, 58.5]


def test_nearest_mean_answers_the_closest_of_the_means() -> None:
    answer = nearest_mean(np.array([[0.0, 0.0], [0.0, 2.0], [4.0, 4.0]]), np.array([3, 3, 7]))
    assert answer(np.array([[0.5, 1.5], [3.0, 3.0]])).tolist() == [3, 7]
