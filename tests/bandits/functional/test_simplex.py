from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.errors import NotPositiveDefinite
from bandits.functional import simplex
from bandits.functional.simplex import Vector, minimize_quadratic

# golden C2: E k and E k^2 of four Gaussian arms in the plane
K = np.array(
    [
        [0.8300132802124834, 0.07602053140792912, 0.09239020611707306, 0.7664638253989182],
        [0.07602053140792912, 0.8300132802124834, 0.012086905463879026, 0.1235557468404219],
        [0.09239020611707309, 0.012086905463879033, 0.614552605703048, 0.12126832264061241],
        [0.7664638253989182, 0.1235557468404219, 0.12126832264061241, 0.7575757575757576],
    ]
)
K2 = np.array(
    [
        [0.7094211123723042, 0.011919595130733696, 0.02352920014648063, 0.6209977706620312],
        [0.011919595130733696, 0.7094211123723042, 0.00101423781146472, 0.03024381846107771],
        [0.023529200146480623, 0.0010142378114647193, 0.44357700496806246, 0.03790009553406436],
        [0.6209977706620312, 0.03024381846107771, 0.03790009553406438, 0.6097560975609755],
    ]
)
ZERO = np.zeros(4)


def by_enumeration(q: Vector, c: Vector) -> tuple[float, Vector]:
    """The minimum over the simplex by trying every support: the KKT point of each by least squares, the best feasible one."""
    scale = float(np.abs(q).max() + np.abs(c).max())
    q, c = q / scale, c / scale
    best, at = np.inf, np.zeros(len(c))
    for size in range(1, len(c) + 1):
        for support in map(list, itertools.combinations(range(len(c)), size)):
            system = np.block([[2 * q[np.ix_(support, support)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            point = np.linalg.lstsq(system, np.append(-c[support], 1.0), rcond=None)[0][:size]
            if point.min() < 0.0 or abs(point.sum() - 1.0) > 1e-9:
                continue
            a = np.zeros(len(c))
            a[support] = point / point.sum()
            value = float(a @ q @ a + c @ a)
            if value < best - 1e-15:
                best, at = value, a
    return best * scale, at


def random_problem(seed: int, *, arms: int, rank: int, scale: float = 1.0) -> tuple[Vector, Vector]:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((arms, rank))
    return factor @ factor.T * scale, rng.standard_normal(arms) * scale


# -- the simplex itself ----------------------------------------------------------------------------------------------------


def test_a_projection_subtracts_one_threshold_and_cuts_at_zero() -> None:
    np.testing.assert_allclose(simplex.project(np.array([0.9, 0.5, -3.0])), [0.7, 0.3, 0.0], atol=1e-15)
    np.testing.assert_allclose(
        simplex.project(np.array([5.0, 5.0, 4.9, 0.0])), [0.4 - 1 / 30, 0.4 - 1 / 30, 0.3 - 1 / 30, 0], atol=1e-12
    )
    np.testing.assert_array_equal(simplex.project(np.array([-7.0])), [1.0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_a_projection_is_the_nearest_point(numbers: list[float]) -> None:
    point = np.array(numbers)
    nearest = simplex.project(point)
    assert nearest.min() >= 0.0
    assert abs(nearest.sum() - 1.0) <= 1e-12
    # the variational inequality (p - x).(y - x) <= 0 at every vertex y
    assert max((point - nearest) @ (vertex - nearest) for vertex in np.eye(len(point))) <= 1e-9 * max(1.0, np.abs(point).max())


def test_the_nearest_psd_matrix_loses_its_negative_eigenvalues_only() -> None:
    indefinite = np.array([[0.011108996538242266, 0.5030330346897709], [0.5030330346897709, 0.011108996538242266]])  # golden E3
    np.testing.assert_allclose(np.linalg.eigvalsh(indefinite), [-0.4919240381515286, 0.5141420312280132], atol=1e-9)
    nearest = simplex.nearest_psd(indefinite)
    np.testing.assert_allclose(np.linalg.eigvalsh(nearest), [0.0, 0.5141420312280132], atol=1e-12)
    assert np.linalg.norm(nearest - indefinite) == pytest.approx(0.4919240381515286)  # as near as any can be
    np.testing.assert_allclose(simplex.nearest_psd(K), K, atol=1e-14)


# -- quadratics ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "q", "c", "weights", "value"),
    [
        (
            "C1",
            np.full((3, 3), 0.005554498269121148) + np.eye(3) * (0.5 - 0.005554498269121148),
            np.zeros(3),
            [1 / 3] * 3,
            1 / 5.869589501102694,
        ),
        ("C2", K2, ZERO, [0.10414733575981684, 0.2753844085536283, 0.4348627260489007, 0.1856055296376542], 0.20265938168559453),
        (
            "C3",
            K,
            -2 * K @ [0.5, 0.2, 0.3, 0],
            [0.5, 0.2, 0.3, 0.0],
            -float(np.array([0.5, 0.2, 0.3, 0]) @ K @ [0.5, 0.2, 0.3, 0]),
        ),
        (
            "C3b",
            K,
            -2 * np.array([0.4641840855845944, 0.22587756269346107, 0.22977702848185516, 0.5545154994805984]),
            [0.0, 0.1464666644780777, 0.2077720666760506, 0.6457612688458717],
            0.22363754475076209 - 0.6845564074479737,
        ),
        (
            "C4",
            K2,
            -0.3 * np.array([0.9, 0.2, 0.6, 0.95]),
            [0.0, 0.18665569917412358, 0.42768042185871435, 0.3856638789671621],
            0.015467200040958501,
        ),
        ("C5", np.diag([1 / 2, 1 / 6, 1.0]), np.zeros(3), [2 / 9, 6 / 9, 1 / 9], 1 / 9),
        (
            "D2, cosine RKE",
            np.array([[0.75, 0.1625, 0.225], [0.1625, 0.79, 0.245], [0.225, 0.245, 0.76]]),
            np.zeros(3),
            [0.3635683433663231, 0.33064653266673477, 0.3057851239669422],
            1 / 2.530313330981128,
        ),
        (
            "H2",
            np.array([[0.5, 0.1, 0.2], [0.1, 0.4, 0.05], [0.2, 0.05, 0.6]]),
            np.zeros(3),
            [0.2631578947368421, 0.47953216374269003, 0.2573099415204678],
            0.2309941520467836,
        ),
    ],
)
def test_a_quadratic_reaches_the_golden_minimum(name: str, q: Vector, c: Vector, weights: list[float], value: float) -> None:
    found = minimize_quadratic(q, np.asarray(c))
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert -1e-15 <= found.gap <= 1e-12


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7), st.sampled_from([1e-6, 1.0, 3e5]))
def test_no_support_does_better_than_the_active_set(seed: int, arms: int, rank: int, scale: float) -> None:
    q, c = random_problem(seed, arms=arms, rank=rank, scale=scale)
    found = minimize_quadratic(q, c)
    best, _ = by_enumeration(q, c)
    size = float(np.abs(q).max() + np.abs(c).max())
    assert found.value <= best + 1e-12 * size + (1e-8 * size if rank < arms else 0.0)  # the ridge of a singular problem
    assert found.value >= best - 1e-10 * size  # the enumeration itself is no better where supports are singular
    assert found.weights.min() >= 0.0
    assert abs(found.weights.sum() - 1.0) <= 1e-12
    assert found.gap >= found.value - best - 1e-10 * size


@pytest.mark.parametrize("arms", [3, 10, 50])
def test_a_warm_start_changes_no_digit(arms: int) -> None:
    q, c = random_problem(11, arms=arms, rank=2 * arms)
    cold = minimize_quadratic(q, c)
    for seed in range(5):
        start = np.random.default_rng(seed).dirichlet(np.ones(arms))
        np.testing.assert_array_equal(minimize_quadratic(q, c, start=start).weights, cold.weights)
    assert minimize_quadratic(q, c, start=cold.weights).steps == 1


def test_what_all_arms_share_in_the_linear_term_moves_nothing() -> None:
    np.testing.assert_allclose(
        minimize_quadratic(K2, ZERO + 1e6).weights, minimize_quadratic(K2, ZERO).weights, rtol=0, atol=1e-12
    )


def test_duplicate_arms_share_their_weight_and_change_no_minimum() -> None:
    order = [0, 1, 2, 3, 2, 2]
    found = minimize_quadratic(K2[np.ix_(order, order)], np.zeros(6))
    assert found.value == pytest.approx(0.20265938168559453, abs=1e-9)
    np.testing.assert_allclose(found.weights[[2, 4, 5]], 0.4348627260489007 / 3, atol=1e-7)
    np.testing.assert_allclose(found.weights[:2], [0.10414733575981684, 0.2753844085536283], atol=1e-7)


def test_permuting_the_arms_permutes_the_weights() -> None:
    q, c = random_problem(5, arms=7, rank=9)
    order = np.random.default_rng(1).permutation(7)
    np.testing.assert_allclose(
        minimize_quadratic(q[np.ix_(order, order)], c[order]).weights, minimize_quadratic(q, c).weights[order], atol=1e-12
    )


@pytest.mark.parametrize(
    ("q", "c", "weights"),
    [
        ([[0.37]], [2.0], [1.0]),
        (np.zeros((3, 3)), [0.3, -0.2, 0.5], [0.0, 1.0, 0.0]),  # a linear problem: the lowest vertex
        (np.zeros((3, 3)), [0.3, 0.3, 0.3], [1 / 3] * 3),  # nothing to choose
        (np.ones((4, 4)), [0.0] * 4, [0.25] * 4),
    ],
)
def test_degenerate_quadratics_have_a_definite_answer(q: Any, c: Any, weights: list[float]) -> None:
    found = minimize_quadratic(np.array(q, dtype=float), np.array(c))
    np.testing.assert_allclose(found.weights, weights, atol=1e-6)
    assert np.isfinite(found.value)


def test_an_indefinite_quadratic_is_refused_until_it_is_projected() -> None:
    indefinite = np.array([[0.01, 0.5], [0.5, 0.01]])
    with pytest.raises(NotPositiveDefinite, match="mixture"):
        minimize_quadratic(indefinite, np.zeros(2))
    assert minimize_quadratic(simplex.nearest_psd(indefinite), np.zeros(2)).weights == pytest.approx([0.5, 0.5])


# -- smooth losses ---------------------------------------------------------------------------------------------------------


def smooth(q: Vector, c: Vector) -> simplex.Loss:
    return lambda a: (float(a @ q @ a + c @ a), 2 * q @ a + c)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_the_smooth_solvers_find_the_minimum_of_a_quadratic(seed: int, arms: int) -> None:
    q, c = random_problem(seed, arms=arms, rank=arms + 2)
    exact = minimize_quadratic(q, c)
    start = np.ones(arms) / arms
    newton = simplex.quasi_newton(smooth(q, c), start, tolerance=1e-9, steps=500)
    assert newton.value == pytest.approx(exact.value, abs=1e-6 * np.abs(q).max())
    assert newton.value - exact.value <= newton.gap + 1e-12 * np.abs(q).max()
    multiplicative = simplex.exponentiated_gradient(smooth(q, c), start, tolerance=1e-3, steps=20_000)
    assert multiplicative.value - exact.value <= 1e-3 * max(1.0, abs(exact.value)) + 1e-9


def test_exponentiated_steps_never_ascend_even_where_step_one_is_far_too_long() -> None:
    q, c = random_problem(3, arms=5, rank=7, scale=400.0)
    values: list[float] = []

    def watched(a: Vector) -> tuple[float, Vector]:
        value, gradient = smooth(q, c)(a)
        values.append(value)
        return value, gradient

    found = simplex.exponentiated_gradient(watched, np.ones(5) / 5, tolerance=1e-6, steps=400)
    assert found.value == min(values)
    assert found.value < values[0]


def test_solvers_stop_at_their_evaluations_and_say_what_is_left() -> None:
    q, c = random_problem(8, arms=6, rank=8)
    exact = minimize_quadratic(q, c).value
    for solver in (simplex.quasi_newton, simplex.exponentiated_gradient, simplex.minimize):
        calls: list[int] = []

        def counted(a: Vector, calls: list[int] = calls) -> tuple[float, Vector]:
            calls.append(1)
            return smooth(q, c)(a)

        found = solver(counted, np.ones(6) / 6, tolerance=1e-12, steps=4)
        assert len(calls) == found.steps == 4
        assert found.gap >= found.value - exact > 0.0


def test_minimise_leaves_a_vertex_where_multiplicative_steps_cannot() -> None:
    entropy = lambda a: (float(np.sum(a * np.log(a + 1e-300))), np.log(a + 1e-12) + 1.0)  # noqa: E731
    vertex = np.array([1.0, 0.0, 0.0])
    assert simplex.exponentiated_gradient(entropy, vertex, tolerance=1e-6, steps=50).weights[0] == 1.0
    found = simplex.minimize(entropy, vertex, tolerance=1e-6, steps=50, leaps=2)
    np.testing.assert_allclose(found.weights, [1 / 3] * 3, atol=1e-4)
    assert found.gap <= 1e-5


@pytest.mark.parametrize("known", [np.zeros((2, 2)), np.ones((2, 2)), -np.eye(2), np.full((2, 2), np.nan)])
def test_a_step_along_which_rounding_left_no_curvature_teaches_none(known: Vector) -> None:
    for change in (np.zeros(2), np.array([1e36, -1e36]), np.array([1e36, 1e36])):
        assert simplex._bent(known, np.array([0.25, -0.25]), change) is None
