from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits import state as states
from bandits.errors import InvalidHyperparameter, InvalidObservation, ReferenceMissing
from bandits.functional import diversity, kernels, moments
from bandits.hyperparameters import declared
from bandits.mixture.plan import Plan
from bandits.mixture.samples import REFERENCE_SAMPLES, MixtureSamples
from bandits.mixture.statistics import MixtureArm, Quadratic
from bandits.policies.mixture import MixtureGreedy, MixtureUcb, Radius
from bandits.types import Context, Moments, NoReference, Observation, State
from tools.simulated_tasks import mixture as worlds_mixture
from tools.simulated_tasks.mixture import play

EXACT: dict[str, Any] = {"bandwidth": 1.0, "random_features": None}

# golden E: the rows of two arms
ROWS_E = ([[0.0, 0], [1, 0], [0, 2]], [[1.0, 1], [2, 1]])

# golden H: a kernel matrix and the samples behind it
KHAT = np.array([[0.5, 0.1, 0.2], [0.1, 0.4, 0.05], [0.2, 0.05, 0.6]])
COUNTS = np.array([12.0, 20.0, 8.0])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(numbers: Any) -> Tensor:
    return torch.as_tensor(np.asarray(numbers), dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def taught(policy: MixtureSamples, *outcomes: tuple[int, Any], arms: int = 2, reference: Any = None) -> State:
    """A prepared state after these outcomes (arm, rows), checked as a service would."""
    state = states.start(policy, arms=arms)
    if reference is not None:
        given = Observation(moments=reference) if isinstance(reference, Moments) else Observation(output=tensor(reference))
        policy.check_reference(state, given)
        state = states.fold(policy, state, given)
    for arm, rows in outcomes:
        seen = Observation(arm=arm, output=tensor(rows))
        policy.check_observation(seen)
        state = policy.prepare(states.fold(policy, state, seen))
    return policy.prepare(state)


def each_arm(rows: Tensor, *, pulls: int) -> list[tuple[int, Tensor]]:
    """(K, pulls * b, e) samples as rounds of outcomes."""
    return [(arm, part) for batch in rows.chunk(pulls, dim=1) for arm, part in enumerate(batch)]


def free(arms: int, **more: Any) -> Context:
    return Context(allowed=(True,) * arms, **more)


def plan_of(policy: MixtureUcb | MixtureGreedy, state: State) -> Plan:
    return policy.plan(state)


def quadratic_of(policy: MixtureUcb | MixtureGreedy, state: State) -> Quadratic:
    loss = policy.plan(state).loss
    assert isinstance(loss, Quadratic)
    return loss


def golden_h(policy: MixtureUcb, linear: Sequence[float] = ()) -> State:
    """A state whose kernel matrix is KHAT over COUNTS: feature sums with these inner products, and a reference with these f."""
    sums = np.linalg.cholesky(KHAT * np.outer(COUNTS, COUNTS))
    blank = policy.form.init()
    pad = len(blank.total) - 3
    arms = [
        replace(blank, pulls=int(n), count=int(n), total=tensor(np.append(row, np.zeros(pad))))
        for row, n in zip(sums, COUNTS, strict=True)
    ]
    reference: Any = NoReference()
    if len(linear):
        total = np.linalg.solve(sums, np.asarray(linear) * COUNTS / -2.0)
        reference = replace(blank, pulls=1, count=1, total=tensor(np.append(total, np.zeros(pad))))
    return State(tuple(arms), reference)


def ucb(**more: Any) -> MixtureUcb:
    return MixtureUcb(**({"bandwidth": 1.0, "random_features": 2, "output_dim": 1} | more))


RELEASED: dict[str, Any] = {"delta_l": 0.6 * math.sqrt(2.0), "beta": 1.0, "delta_kappa": 0.0}  # the release has no 1/2


# -- golden E: streaming sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "v", "u"),
    [
        (
            "kid",
            [[0.51643354257181, 0.3123898300791263], [0.3123898300791263, 0.8032653298563167]],
            [0.27465031385771493, 0.6065306597126334],
        ),
        ("rke", [[0.4206517837909471, 0.13122686414657522], [0.13122686414657522, 0.6839397205857212]], None),
    ],
)
def test_golden_e_kernel_means_of_two_arms(objective: Any, v: list[list[float]], u: list[float] | None) -> None:
    policy = MixtureUcb(objective=objective, output_dim=2, **EXACT)
    outcomes = [(arm, [row]) for arm in (0, 1) for row in ROWS_E[arm]]
    state = taught(policy, *outcomes, reference=[[0.3, 0.4]] if objective == "kid" else None)
    np.testing.assert_allclose(quadratic_of(policy, state).matrix, v, atol=1e-9)
    report = policy.report(state)["arms"]
    assert [arm["similarity"] for arm in report] == pytest.approx([v[0][0], v[1][1]], abs=1e-9)
    if u:
        assert [arm["similarity_unbiased"] for arm in report] == pytest.approx(u, abs=1e-9)


def test_golden_e2_rke_of_what_was_served() -> None:
    policy = MixtureUcb(output_dim=2, **EXACT)
    state = taught(policy, (0, ROWS_E[0]), (1, ROWS_E[1]))
    report = policy.report(state)
    assert report["pooled"]["rke"] == pytest.approx(3.087812201533505, abs=1e-9)
    assert report["objective"]["value"] == pytest.approx(1 / 0.32385389224881245, abs=1e-9)
    gram = kernels.gaussian(*[tensor(ROWS_E[0] + ROWS_E[1])] * 2, bandwidth=1.0)
    assert report["pooled"]["vendi"] == pytest.approx(diversity.vendi(diversity.gram_spectrum(gram)))
    unbiased = (float(gram.square().sum()) - 5) / 20
    assert report["objective"]["unbiased"] == pytest.approx(1 / unbiased)


def test_golden_e4_random_features_estimate_the_same_means() -> None:
    policy = MixtureUcb(objective="kid", output_dim=2, bandwidth=1.0, random_features=8192)
    state = taught(policy, (0, ROWS_E[0]), (1, ROWS_E[1]), reference=[[0.3, 0.4]])
    exact = [[0.51643354257181, 0.3123898300791263], [0.3123898300791263, 0.8032653298563167]]
    np.testing.assert_allclose(quadratic_of(policy, state).matrix, exact, atol=0.02)
    squared = taught(MixtureUcb(output_dim=2, bandwidth=1.0, random_features=8192), (0, ROWS_E[0]), (1, ROWS_E[1]))
    exact = [[0.4206517837909471, 0.13122686414657522], [0.13122686414657522, 0.6839397205857212]]
    np.testing.assert_allclose(quadratic_of(squared.cache.policy, squared).matrix, exact, atol=0.02)


def test_kid_is_the_squared_distance_of_the_pooled_samples() -> None:
    policy = MixtureUcb(objective="kid", output_dim=2, bandwidth=1.3, random_features=None)
    reference = normal(7, 2, seed=3)
    state = taught(policy, (0, ROWS_E[0]), (1, ROWS_E[1]), reference=reference)
    x = tensor(ROWS_E[0] + ROWS_E[1])
    grams = [kernels.gaussian(a, b, bandwidth=1.3) for a, b in ((x, x), (reference, reference), (x, reference))]
    report = policy.report(state)["objective"]
    assert report["direction"] == "minimise"
    assert report["value"] == pytest.approx(diversity.kernel_distance(*grams, unbiased=False), abs=1e-12)
    assert report["unbiased"] == pytest.approx(diversity.kernel_distance(*grams, unbiased=True), abs=1e-12)


# -- golden H: one decision ------------------------------------------------------------------------------------------------


def test_golden_h_widths() -> None:
    theory = ucb(preset="theory").radius
    assert theory == Radius(2.0, 4.0, 1.0)
    np.testing.assert_allclose(theory.at(COUNTS, 40.0), [1.6515338847327041, 1.2647229238166104, 2.0456455826398416], atol=1e-9)
    released = ucb(**RELEASED).radius
    np.testing.assert_allclose(
        released.at(COUNTS, 40.0), [0.33266557324649343, 0.2576816450080425, 0.40743045472218586], atol=1e-9
    )
    assert ucb().radius == Radius(0.6, 1.0, 0.0)  # the published figures


@pytest.mark.parametrize(
    ("constants", "weights", "value"),
    [
        ({"preset": "theory"}, [0.2593154016, 0.0476074888, 0.6930771097], -1.5058673621),
        (RELEASED, [0.2632731825067149, 0.39628073668322955, 0.34044608081005545], -0.09118105444224792),
    ],
)
def test_golden_h_cab_draws_from_the_optimistic_mixture(constants: Any, weights: list[float], value: float) -> None:
    policy = ucb(method="cab", **constants)
    state = golden_h(policy)
    answer = policy.weights(state, [free(3)])
    np.testing.assert_allclose(answer.values[0].numpy(), weights, atol=1e-9)
    np.testing.assert_allclose(answer.scores["weight"][0].numpy(), weights, atol=1e-9)
    assert plan_of(policy, state).solved[(True,) * 3].solution.value == pytest.approx(value, abs=1e-9)
    assert plan_of(policy, state).solved[(True,) * 3].solution.gap <= 1e-12


@pytest.mark.parametrize(
    ("constants", "h"),
    [
        ({"preset": "theory"}, [-1.1715338847, -0.7847229238, -1.6356455826]),
        (RELEASED, [0.1473344267535066, 0.22231835499195757, 0.002569545277814167]),
    ],
)
def test_golden_h_ogd_takes_one_step(constants: Any, h: list[float]) -> None:
    policy = ucb(**constants)
    answer = policy.weights(golden_h(policy), [free(3)])
    assert answer.values.tolist() == [[0.0, 0.0, 1.0]]
    np.testing.assert_allclose((answer.scores["gradient"] - answer.scores["bonus"])[0].numpy(), h, atol=1e-9)
    np.testing.assert_allclose(answer.scores["weight"][0].numpy(), COUNTS / 40.0)


def test_golden_h2_greedy_answers_the_best_mixture() -> None:
    policy = MixtureGreedy(bandwidth=1.0, random_features=2, output_dim=1)
    state = golden_h(policy)  # type: ignore[arg-type]
    answer = policy.weights(state, [free(3)])
    np.testing.assert_allclose(answer.values[0].numpy(), [0.2631578947368421, 0.47953216374269003, 0.2573099415204678], atol=1e-9)
    assert policy.report(state)["objective"]["optimum"] == pytest.approx(1 / 0.2309941520467836, abs=1e-9)


def test_golden_h3_the_bias_term_is_a_bonus_in_both_algorithms() -> None:
    constants = {**RELEASED, "delta_kappa": 0.4, "objective": "kid"}
    cab, ogd = ucb(method="cab", **constants), ucb(**constants)
    weights = cab.weights(golden_h(cab, (-0.3, -0.1, -0.5)), [free(3)]).values[0].numpy()
    np.testing.assert_allclose(weights, [0.2615187965418026, 0.15826904077679685, 0.5802121626814005], atol=1e-9)
    scores = ogd.weights(golden_h(ogd, (-0.3, -0.1, -0.5)), [free(3)]).scores
    h = (scores["gradient"] - scores["bonus"])[0].numpy()
    np.testing.assert_allclose(h, [-0.1859989065798267, 0.10231835499195759, -0.5474304547221859], atol=1e-9)
    # the released code adds the term: (-0.1193322399, 0.142318355, -0.4474304547)
    np.testing.assert_allclose(h + 0.8 / COUNTS, [-0.11933223991316005, 0.14231835499195758, -0.44743045472218584], atol=1e-9)


# -- golden D: cosine kernel, Vendi ----------------------------------------------------------------------------------------

D2_ROWS = [
    [[1.0, 0, 0]] * 5 + [[1.0, 1, 0]] * 5,
    [[0.0, 1, 0]] * 3 + [[0.0, 2, 2]] * 7,
    [[3.0, 0, 3]] * 6 + [[0.0, 0, 1]] * 4,
]


def test_golden_d2_the_most_diverse_mixture_of_directions() -> None:
    policy = MixtureGreedy(objective="vendi", kernel="cosine", output_dim=3, initial_pulls=2, tolerance=1e-10)
    state = taught(
        policy,
        *[(arm, D2_ROWS[arm][part]) for part in (slice(0, 5), slice(5, 10)) for arm in range(3)],
        arms=3,
    )
    weights = policy.weights(state, [free(3)]).values[0].numpy()
    np.testing.assert_allclose(weights, [0.3577561389458409, 0.3287429695036168, 0.31350089155054217], atol=1e-6)
    report = policy.report(state)
    assert report["objective"]["optimum"] == pytest.approx(2.7463124943438846, abs=1e-9)
    assert report["objective"]["value"] == pytest.approx(2.744128770221236, abs=1e-9)  # ten samples of each: uniform
    assert [arm["alone"] for arm in report["arms"]] == pytest.approx([1.5166372229999607, 1.4410192851781154, 1.4977357780868654])
    assert report["pooled"]["vendi"] == pytest.approx(2.744128770221236, abs=1e-9)
    assert report["solver"]["gap"] < 1e-9


def test_golden_d2_rke_with_the_cosine_kernel() -> None:
    policy = MixtureGreedy(kernel="cosine", output_dim=3, initial_pulls=1)
    state = taught(policy, *enumerate(D2_ROWS), arms=3)
    golden = [[0.75, 0.1625, 0.225], [0.1625, 0.79, 0.245], [0.225, 0.245, 0.76]]
    np.testing.assert_allclose(quadratic_of(policy, state).matrix, golden, atol=1e-12)
    weights = policy.weights(state, [free(3)]).values[0].numpy()
    np.testing.assert_allclose(weights, [0.3635683433663231, 0.33064653266673477, 0.3057851239669422], atol=1e-9)
    assert policy.report(state)["objective"]["optimum"] == pytest.approx(2.530313330981128, abs=1e-9)


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_disjoint_arms_get_weights_in_proportion_to_their_kinds(kernel: Any) -> None:
    """Golden D1, C5: modes 2 and 6 that share nothing; Vendi weights are proportional to exp(S_i), RKE weights to the modes."""
    policy = MixtureGreedy(objective="vendi", kernel=kernel, bandwidth=0.05, output_dim=8, initial_pulls=2, random_features=256)
    far = 1.0 if kernel == "cosine" else 40.0  # far enough for random features to be nearly orthogonal
    rows = far * torch.eye(8, dtype=torch.float64)
    state = taught(policy, (0, rows[:2]), (1, rows[2:]), (0, rows[:2]), (1, rows[2:]))
    exact = kernel == "cosine"
    assert policy.weights(state, [free(2)]).values[0].tolist() == pytest.approx([0.25, 0.75], abs=1e-6 if exact else 0.02)
    assert policy.report(state)["objective"]["optimum"] == pytest.approx(8.0, rel=1e-6 if exact else 0.02)
    squared = MixtureGreedy(kernel="cosine", output_dim=9, initial_pulls=1)
    eye = torch.eye(9, dtype=torch.float64)
    parts = (eye[:2], eye[2:8], eye[8:])
    state = taught(squared, *enumerate(parts), arms=3)
    np.testing.assert_allclose(squared.weights(state, [free(3)]).values[0].numpy(), np.array([2, 6, 1]) / 9, atol=1e-12)


# -- FID -------------------------------------------------------------------------------------------------------------------


def test_golden_b5_greedy_mixes_arms_that_only_miss_the_mean() -> None:
    """Arms whose sample moments are those of golden B5 exactly: the corners of a square around (1, 0) and (0, 1.2)."""
    corners = tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3.0) / 2.0  # covariance I with n - 1
    policy = MixtureGreedy(objective="fid", output_dim=2, tolerance=1e-9)
    reference = Moments(mean=torch.zeros(2, dtype=torch.float64), covariance=torch.eye(2, dtype=torch.float64), count=100)
    rows = torch.stack([corners + tensor([1.0, 0]), corners + tensor([0, 1.2])])
    state = states.start(policy, arms=2)
    state = states.fold(policy, state, Observation(moments=reference))
    for arm in (0, 1):  # five pulls: four of one corner each, and one more that keeps the moments
        for row in rows[arm]:
            state = states.fold(policy, state, Observation(arm=arm, output=row[None]))
        state = replace(state, arms=states.with_arm(state, arm, replace(state.arms[arm], pulls=5)).arms)
    weights = policy.weights(state, [free(2)]).values[0].tolist()
    assert weights == pytest.approx([0.6132871561350295, 0.3867128438649705], abs=1e-5)
    report = policy.report(state)
    assert report["objective"]["optimum"] == pytest.approx(0.657238937728474, abs=1e-8)
    assert [arm["alone"] for arm in report["arms"]] == pytest.approx([1.0, 1.44], abs=1e-9)
    half = moments.frechet(rows.flatten(0, 1).mean(0), rows_pooled(rows), reference.mean, reference.covariance)
    assert report["objective"]["value"] == pytest.approx(half, abs=1e-9)


def rows_pooled(rows: Tensor) -> Tensor:
    """Covariance of an even mixture of arms from their own unbiased covariances."""
    second = torch.stack([torch.cov(arm.T) + torch.outer(arm.mean(0), arm.mean(0)) for arm in rows]).mean(0)
    mean = rows.flatten(0, 1).mean(0)
    return second - torch.outer(mean, mean)


def test_reference_samples_and_their_moments_are_the_same_reference() -> None:
    policy = MixtureGreedy(objective="fid", output_dim=3, tolerance=1e-8)
    reference = normal(40, 3, seed=1)
    given = Moments(mean=reference.mean(0), covariance=torch.cov(reference.T), count=40)
    outcomes = each_arm(normal(3, 30, 3, seed=2) + torch.arange(3.0)[:, None, None], pulls=5)
    answers = [policy.weights(taught(policy, *outcomes, arms=3, reference=kind), [free(3)]).values for kind in (reference, given)]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-6)


def test_large_outputs_are_optimised_every_few_outcomes_only() -> None:
    policy = MixtureGreedy(objective="fid", output_dim=3, refresh=4)
    state = taught(policy, *each_arm(normal(2, 20, 3, seed=2), pulls=5), reference=normal(40, 3, seed=1))
    kept = [state.cache]
    for t in range(9):
        state = policy.prepare(states.fold(policy, state, Observation(arm=t % 2, output=normal(4, 3, seed=t))))
        assert policy.weights(state, [free(2)]).values.sum() == pytest.approx(1.0)
        kept.append(state.cache)
    fresh = [t for t in range(1, 10) if kept[t] is not kept[t - 1]]
    assert fresh[0] <= 4
    assert [b - a for a, b in pairwise(fresh)] == [4] * (len(fresh) - 1)
    wider = states.add_arm(policy, state)
    assert policy.prepare(wider).cache is not state.cache
    assert [replace(policy, output_dim=e, refresh=None).every for e in (256, 257, 768, 2048)] == [1, 5, 15, 20]
    assert MixtureGreedy(kernel="cosine", output_dim=900).every == 1
    assert MixtureGreedy(objective="vendi", bandwidth=1.0, output_dim=9).every == 10  # 256 frequencies, side 512


# -- the statistic ---------------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[type[MixtureUcb] | type[MixtureGreedy], dict[str, Any]]] = {
    "rke": (MixtureUcb, {"bandwidth": 1.5, "random_features": 16}),
    "rke exact": (MixtureUcb, {"bandwidth": 1.5, "random_features": None, "max_samples": 9, "method": "cab"}),
    "rke cosine": (MixtureGreedy, {"kernel": "cosine"}),
    "rke+precision": (
        MixtureUcb,
        {"objective": "rke+quality", "quality": "precision", "bandwidth": 1.5, "random_features": 16, "method": "cab"},
    ),
    "rke+density": (
        MixtureGreedy,
        {"objective": "rke+quality", "quality": "density", "kernel": "cosine", "neighbours": 3, "quality_weight": 0.2},
    ),
    "kid": (MixtureUcb, {"objective": "kid", "bandwidth": 1.5, "random_features": 16, "method": "cab"}),
    "kid exact": (MixtureGreedy, {"objective": "kid", "bandwidth": 1.5, "random_features": None, "max_samples": 9}),
    "kid cosine": (MixtureUcb, {"objective": "kid", "kernel": "cosine"}),
    "vendi": (MixtureGreedy, {"objective": "vendi", "bandwidth": 1.5, "random_features": 6}),
    "vendi cosine": (MixtureGreedy, {"objective": "vendi", "kernel": "cosine"}),
    "fid": (MixtureGreedy, {"objective": "fid"}),
}


def form(name: str, **more: Any) -> MixtureUcb | MixtureGreedy:
    policy, hyperparameters = FORMS[name]
    return policy(output_dim=3, seed=5, **(hyperparameters | {"initial_pulls": 1} | more))


def reference_for(policy: MixtureSamples) -> Tensor | None:
    return normal(20, 3, seed=99) if "reference" in policy.needs else None


def lesson(name: str, *, pulls: int = 6, arms: int = 3, batch: int = 2, **more: Any) -> tuple[MixtureUcb | MixtureGreedy, State]:
    policy = form(name, **more)
    rows = normal(arms, pulls * batch, 3, seed=7) + torch.arange(float(arms))[:, None, None] / 2
    return policy, taught(policy, *each_arm(rows, pulls=pulls), arms=arms, reference=reference_for(policy))


@pytest.mark.parametrize("name", FORMS)
def test_splitting_a_batch_changes_no_bit_of_the_sums(name: str) -> None:
    policy = form(name)
    rows, reference = normal(23, 3, seed=1), reference_for(policy)
    whole = taught(policy, (0, rows), arms=1, reference=reference)
    packed = []
    for cuts in ([], list(range(1, 23)), [5, 16]):
        split = taught(policy, *[(0, part) for part in rows.tensor_split(cuts)], arms=1, reference=reference)
        packed.append(states.pack(policy, replace(split, arms=(replace(split.arms[0], pulls=1),))))
    assert packed == [states.pack(policy, whole)] * 3


@pytest.mark.parametrize("name", FORMS)
def test_a_restored_state_decides_the_same(name: str) -> None:
    policy, state = lesson(name)
    restored = states.unpack(policy, states.pack(policy, state))
    assert states.digest(policy, restored) == states.digest(policy, state)
    before, after = (policy.weights(s, [free(3)]).values for s in (state, restored))
    smooth = policy.objective in ("fid", "vendi")  # iterative: to the tolerance
    torch.testing.assert_close(after, before, rtol=0, atol=2e-3 if smooth else 1e-9)
    restored_loss, loss = plan_of(policy, restored).loss, plan_of(policy, state).loss
    share = np.array([0.2, 0.5, 0.3])
    assert restored_loss.at(share)[0] == pytest.approx(loss.at(share)[0], abs=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_learning_writes_into_nothing(name: str) -> None:
    policy, state = lesson(name)
    before = states.pack(policy, state)
    later = states.fold(policy, state, Observation(arm=1, output=normal(4, 3, seed=3)))
    policy.weights(policy.prepare(later), [free(3)])
    assert states.pack(policy, state) == before
    assert later.arms[0] is state.arms[0]
    assert later.arms[1].pulls == state.arms[1].pulls + 1
    assert later.arms[1].count == state.arms[1].count + 4


@pytest.mark.parametrize("name", ["rke exact", "kid exact"])
def test_an_exact_kernel_forgets_the_oldest_quarter_and_its_sums_follow(name: str) -> None:
    policy = form(name)
    state = taught(policy, arms=2, reference=reference_for(policy))
    rows = normal(2, 30, 3, seed=4)
    for t in range(30):  # with more than one outcome between two preparations now and then
        state = states.fold(policy, state, Observation(arm=0, output=rows[0, [t]]))
        if t % 3 == 0:
            state = states.fold(policy, state, Observation(arm=1, output=rows[1, t : t + 2]))
        if t % 4:
            state = policy.prepare(state)
        assert 6 < min(t + 1, 7) <= 7 or len(state.arms[0].outputs) <= 9
    arm = state.arms[0]
    assert (arm.count, len(arm.outputs)) == (30, arm.effective_count)
    assert 7 <= arm.effective_count <= 9
    torch.testing.assert_close(arm.outputs, rows[0, -arm.effective_count :], rtol=0, atol=0)
    fresh = replace(state, cache=None)
    incremental, direct = (quadratic_of(policy, s) for s in (policy.prepare(state), fresh))
    np.testing.assert_allclose(incremental.matrix, direct.matrix, atol=1e-12)
    np.testing.assert_allclose(incremental.linear, direct.linear, atol=1e-12)
    sigma = 1.5 / (math.sqrt(2.0) if policy.objective == "rke" else 1.0)
    expected = [[float(kernels.gaussian(x.outputs, y.outputs, bandwidth=sigma).mean()) for y in state.arms] for x in state.arms]
    np.testing.assert_allclose(direct.matrix, expected, atol=1e-12)


def test_two_branches_of_an_exact_kernel_have_their_own_sums() -> None:
    """Both learn one more sample, of one state with a plan: each compares its own with all, whichever plan it starts from."""
    policy = form("rke exact")
    rows = normal(2, 6, 3, seed=5)
    trunk = policy.prepare(taught(policy, (0, rows[0, :4]), (1, rows[1, :4]), arms=2))
    one, other = (policy.prepare(states.fold(policy, trunk, Observation(arm=0, output=rows[0, [t]]))) for t in (4, 5))
    crossed = policy.prepare(replace(one, arms=(other.arms[0], one.arms[1])))  # the plan at hand is that of the other branch
    for state in (one, other, crossed):
        direct = quadratic_of(policy, replace(state, cache=None))
        np.testing.assert_allclose(quadratic_of(policy, state).matrix, direct.matrix, atol=1e-13)
    assert abs(quadratic_of(policy, one).matrix - quadratic_of(policy, other).matrix).max() > 1e-3


def test_quality_is_the_average_over_an_arms_samples() -> None:
    policy = form("rke+density", quality_weight=0.7)
    reference = normal(20, 3, seed=99)
    rows = 1.5 * normal(40, 3, seed=6)
    state = taught(policy, (0, rows[:13]), (0, rows[13:]), arms=1, reference=reference)
    distances = torch.cdist(reference, reference).sort(dim=1).values[:, 3]
    density = float((torch.cdist(rows, reference) < distances).sum(1).to(torch.float64).mean()) / 3
    assert 0.0 < density < 5.0
    assert quadratic_of(policy, state).linear[0] == pytest.approx(-0.7 * density)
    assert policy.report(state)["arms"][0]["quality"] == pytest.approx(density)
    precise = form("rke+precision", quality_weight=0.7, neighbours=3)
    state = taught(precise, (0, rows), arms=1, reference=reference)
    precision = float((torch.cdist(rows, reference) < distances).any(1).to(torch.float64).mean())
    assert 0.1 < precision < 1.0
    assert precise.report(state)["arms"][0]["quality"] == pytest.approx(precision)


def test_outputs_are_scaled_to_length_one_where_asked() -> None:
    rows = normal(6, 3, seed=0)
    plain = taught(form("rke"), (0, rows / rows.norm(dim=1, keepdim=True)), arms=1)
    scaled = taught(form("rke", normalize=True), (0, 17.0 * rows), arms=1)
    torch.testing.assert_close(scaled.arms[0].total, plain.arms[0].total, rtol=0, atol=1e-12)


def test_memory_does_not_grow_with_the_rounds() -> None:
    for name in FORMS:
        policy = form(name)
        state, sizes = taught(policy, arms=1, reference=reference_for(policy)), []
        for t in range(30):
            state = states.fold(policy, state, Observation(arm=0, output=normal(20, 3, seed=t)))
            sizes.append(len(states.pack(policy, state)))
        slack = 256 * 3 * 8 if name == "fid" else 9 * 3 * 8  # a block of rows, a window of samples
        assert max(sizes) - sizes[0] <= slack + 200


# -- the decision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_weights_are_a_distribution_over_the_allowed_arms(name: str) -> None:
    policy, state = lesson(name, arms=4)
    contexts = [free(4), Context(allowed=(True, False, True, True)), Context(allowed=(False, False, True, False)), free(4)]
    answer = policy.weights(state, contexts)
    assert answer.values.shape == (4, 4)
    assert float((answer.values.sum(1) - 1.0).abs().max()) <= 1e-12
    assert float(answer.values.min()) >= 0.0
    assert answer.values[1, 1] == 0.0
    assert answer.values[2].tolist() == [0.0, 0.0, 1.0, 0.0]
    for score in answer.scores.values():
        assert score.shape == (4, 4)
        assert bool(score.isfinite().all())
    part = policy.plan(state).loss.only([0, 2, 3])
    if isinstance(policy, MixtureGreedy):  # the best mixture of what is allowed, not the best of all renormalised
        value, gradient = part.at(answer.values[1, [0, 2, 3]].numpy())
        gap = float(answer.values[1, [0, 2, 3]].numpy() @ (gradient - gradient.min()))
        assert gap <= 1e-5 * max(1.0, abs(value))


@pytest.mark.parametrize("name", FORMS)
def test_permuting_the_arms_permutes_the_answer(name: str) -> None:
    policy, state = lesson(name, arms=4, pulls=7)
    order = [2, 0, 3, 1]
    permuted = State(tuple(state.arms[arm] for arm in order), state.reference)
    smooth = policy.objective in ("fid", "vendi")
    torch.testing.assert_close(
        policy.weights(permuted, [free(4)]).values,
        policy.weights(state, [free(4)]).values[:, order],
        rtol=0,
        atol=3e-3 if smooth else 1e-9,
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_duplicated_arm_does_not_change_the_best_value(name: str) -> None:
    policy, state = lesson(name)
    twice = State((*state.arms, state.arms[1]), state.reference)
    optimum, again = (policy.report(s)["objective"]["optimum"] for s in (state, twice))
    assert again == pytest.approx(optimum, rel=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_every_arm_gets_its_first_pulls_pending_ones_counted(name: str) -> None:
    policy = form(name, initial_pulls=2)
    least = {"fid": 5}.get(policy.objective, 2)
    state = taught(policy, arms=3, reference=reference_for(policy))
    picks = policy.weights(state, [free(3)] * (3 * least)).values.argmax(1).tolist()
    assert picks == [0, 1, 2] * least
    assert policy.weights(state, [free(3, pending=(1, 1, 0))]).values[0].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", FORMS)
def test_while_nothing_came_back_burn_in_goes_on(name: str) -> None:
    policy = form(name)
    state = taught(policy, arms=3, reference=reference_for(policy))
    waiting = free(3, pending=(7, 6, 7))
    assert policy.weights(state, [waiting] * 3).values.argmax(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", FORMS)
def test_an_arm_without_samples_has_no_place_in_the_mixture_yet(name: str) -> None:
    policy, state = lesson(name)
    wider = policy.prepare(states.add_arm(policy, state))
    assert policy.weights(wider, [free(4)]).values[0].tolist() == [0.0, 0.0, 0.0, 1.0]  # it is tried first
    answer = policy.weights(wider, [free(4, pending=(0, 0, 0, 6))])  # its first samples are on their way
    assert answer.values[0, 3] == 0.0
    assert answer.values.sum() == pytest.approx(1.0)
    assert bool(answer.scores["gradient"][0, 3].isnan())
    assert bool(answer.scores["gradient"][0, :3].isfinite().all())
    alone = policy.weights(wider, [Context(allowed=(False, False, False, True), pending=(0, 0, 0, 6))])
    assert alone.values[0].tolist() == [0.0, 0.0, 0.0, 1.0]
    report = policy.report(wider)
    assert report["arms"][3]["n"] == 0
    assert report["arms"][3]["alone"] is None


@pytest.mark.parametrize("name", FORMS)
def test_one_arm_is_all_there_is(name: str) -> None:
    policy, state = lesson(name, arms=1)
    assert policy.weights(state, [free(1)]).values.tolist() == [[1.0]]
    json.dumps(policy.report(state), allow_nan=False)


def test_the_exploration_floor_leaves_no_arm_without_a_chance() -> None:
    for name in ("rke", "rke cosine"):
        policy, state = lesson(name, exploration_floor=0.3)
        context = Context(allowed=(True, True, False))
        values = policy.weights(state, [context]).values[0]
        assert float(values[:2].min()) >= 0.15 - 1e-12
        assert values[2] == 0.0


def policy_state(policy: MixtureUcb | MixtureGreedy, state: State) -> State:
    """The same statistics, prepared from nothing by this policy."""
    return policy.prepare(replace(state, cache=None))


@pytest.mark.parametrize("name", ["rke cosine", "kid exact", "vendi", "fid"])
def test_greedy_keeps_its_floor_and_is_best_above_it(name: str) -> None:
    policy, state = lesson(name, arms=4, floor=0.07, tolerance=1e-8)
    weights = policy.weights(state, [free(4)]).values[0].numpy()
    assert weights.min() >= 0.07 - 1e-12
    loss = policy.plan(state).loss
    value, gradient = loss.at(weights)
    room = weights - 0.07  # what may still move
    gap = float(room @ (gradient - gradient.min()))
    assert gap <= 1e-5 * max(1.0, abs(value))
    rough = replace(policy, tolerance=0.1, iterations=3) if policy.objective in ("vendi", "fid") else policy
    fresh = policy_state(rough, state)
    answer = rough.weights(fresh, [free(4)])
    slopes, room = answer.scores["gradient"][0].numpy(), answer.values[0].numpy() - 0.07
    solver = rough.report(fresh)["solver"]
    assert solver["gap"] == pytest.approx(float(room @ (slopes - slopes.min())), abs=1e-9)
    assert isinstance(policy, MixtureGreedy)
    even = replace(policy, floor=0.25)
    torch.testing.assert_close(even.weights(state, [free(4)]).values, torch.full((1, 4), 0.25, dtype=torch.float64))
    more = replace(policy, floor=0.6)  # more than there is: even
    torch.testing.assert_close(more.weights(state, [free(4)]).values, torch.full((1, 4), 0.25, dtype=torch.float64))


def test_a_prepared_state_follows_the_arms_that_are_asked_for() -> None:
    policy, state = lesson("vendi cosine", arms=4)
    without = Context(allowed=(True, True, False, True))
    policy.weights(state, [without])
    later = policy.prepare(states.fold(policy, state, Observation(arm=0, output=normal(2, 3, seed=8))))
    assert set(later.cache.solved) == {(True, True, False, True)}
    report = policy.report(later)["arms"]
    assert report[2]["weight"] == 0.0


def test_a_plan_is_used_for_its_own_arms_and_policy_only() -> None:
    policy, state = lesson("rke cosine")
    assert policy.prepare(state).cache is state.cache
    stale = replace(state, arms=state.arms[::-1])  # carries the cache of another order
    torch.testing.assert_close(
        policy.weights(stale, [free(3)]).values, policy.weights(state, [free(3)]).values.flip(1), rtol=0, atol=1e-12
    )
    assert isinstance(policy, MixtureGreedy)
    floored = replace(policy, floor=0.2)
    assert float(floored.weights(state, [free(3)]).values.min()) >= 0.2 - 1e-12


# -- OGD: pending decisions ------------------------------------------------------------------------------------------------


def planned_by_hand(k: np.ndarray, n: np.ndarray, radius: Radius, steps: int) -> list[int]:
    """The arms that Algorithm 2 pulls one after the other if no outcome changes its estimates."""
    n, picks = n.copy(), []
    for _ in range(steps):
        t = n.sum()
        width = radius.delta_l * np.sqrt(radius.beta * np.log(t) / (2 * n)) + radius.delta_kappa / n
        picks.append(int(np.argmin(2 / t * k @ n - width)))
        n[picks[-1]] += 1
    return picks


@pytest.mark.parametrize("constants", [{"preset": "theory"}, {}])
def test_requests_in_flight_get_the_arms_that_the_algorithm_would_pull_in_turn(constants: Any) -> None:
    policy = ucb(**constants)
    state = golden_h(policy)
    expected = planned_by_hand(KHAT, COUNTS, policy.radius, 40)
    assert len(set(expected)) == 3
    together = policy.weights(state, [free(3)] * 40).values.argmax(1).tolist()
    assert together == expected
    pending = [0, 0, 0]
    for arm in expected:
        assert policy.weights(state, [free(3, pending=tuple(pending))]).values[0].argmax() == arm
        pending[arm] += 1


def test_a_pending_decision_stands_for_as_many_samples_as_the_arm_brings() -> None:
    policy = ucb(initial_pulls=2, delta_l=0.6)
    state = golden_h(policy)
    batches = replace(state, arms=tuple(replace(arm, pulls=arm.count // 4) for arm in state.arms))
    scores = policy.weights(batches, [free(3, pending=(2, 0, 1))]).scores
    n = COUNTS + np.array([8.0, 0, 4])
    np.testing.assert_allclose(scores["weight"][0].numpy(), n / n.sum())
    np.testing.assert_allclose(scores["bonus"][0].numpy(), 0.6 * np.sqrt(np.log(n.sum()) / (2 * n)))
    np.testing.assert_allclose(scores["gradient"][0].numpy(), 2 * KHAT @ n / n.sum(), atol=1e-12)


def test_ties_go_to_the_lowest_index() -> None:
    policy = form("rke")
    state = taught(policy, *[(arm, [[1.0, 2, 3]]) for arm in range(3)], arms=3)
    assert policy.weights(state, [free(3)]).values[0].tolist() == [1.0, 0.0, 0.0]
    context = Context(allowed=(False, True, True))
    assert policy.weights(state, [context]).values[0].tolist() == [0.0, 1.0, 0.0]


# -- what it refuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MixtureUcb, MixtureGreedy])
@pytest.mark.parametrize(
    ("hyperparameters", "field", "why"),
    [
        ({}, "bandwidth", "median distance"),
        ({"quality": "recall", "kernel": "cosine"}, "quality", "reach together"),
        ({"quality": "coverage", "kernel": "cosine"}, "quality", "not linear"),
        ({"quality": "precision", "kernel": "cosine"}, "quality", r"rke\+quality"),
        ({"objective": "rke+quality", "kernel": "cosine"}, "quality", "precision or density"),
        ({"objective": "is", "kernel": "cosine"}, "objective", "one of"),
        ({"initial_pulls": 0, "kernel": "cosine"}, "initial_pulls", "at least 1"),
        ({"bandwidth": 0.0}, "bandwidth", "greater than 0"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(kind: Any, hyperparameters: Any, field: str, why: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=why) as caught:
        kind(output_dim=3, **hyperparameters)
    assert caught.value.field == field


def test_what_each_policy_alone_cannot_do_is_refused() -> None:
    with pytest.raises(InvalidHyperparameter, match="one of 'rke', 'kid', 'rke"):
        MixtureUcb(objective="fid", output_dim=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidHyperparameter, match="no exact rbf form"):
        MixtureGreedy(objective="vendi", bandwidth=1.0, random_features=None, output_dim=3)
    with pytest.raises(InvalidHyperparameter, match="range grows with the reference"):
        form("rke+precision", quality="density", preset="theory")
    assert MixtureGreedy(objective="fid", output_dim=3).needs == {"output", "reference"}  # needs no bandwidth


@pytest.mark.parametrize(
    ("more", "radius"),
    [
        ({}, Radius(2.0, 4.0, 1.0)),
        ({"objective": "kid"}, Radius(4.0, 4.0, 1.0)),
        ({"objective": "kid", "kernel": "cosine"}, Radius(8.0, 4.0, 2.0)),
        ({"objective": "rke+quality", "quality": "precision", "quality_weight": 0.3}, Radius(2.3, 4.0, 1.0)),
        ({"beta": 2.5, "delta_kappa": 0.0}, Radius(2.0, 2.5, 0.0)),
        ({"preset": "practical", "delta_l": 0.9}, Radius(0.9, 1.0, 0.0)),
    ],
)
def test_the_theory_preset_is_the_range_of_the_loss(more: Any, radius: Radius) -> None:
    assert ucb(**({"preset": "theory"} | more)).radius == radius


def test_needs_follow_from_the_objective() -> None:
    wanted = {name: "reference" in form(name).needs for name in FORMS}
    assert wanted == {name: name.split()[0] in ("rke+precision", "rke+density", "kid", "fid") for name in FORMS}
    assert MixtureUcb.needs == MixtureGreedy.needs == {"output"}
    assert MixtureUcb.reference_frozen
    assert {item.name for item in declared(MixtureGreedy)} >= {"objective", "floor", "initial_pulls", "quality_weight"}


@pytest.mark.parametrize("name", [name for name in FORMS if "reference" in form(name).needs])
def test_nothing_is_decided_before_the_reference(name: str) -> None:
    policy = form(name)
    state = states.start(policy, arms=2)
    with pytest.raises(ReferenceMissing, match="at least"):
        policy.check_ready(state)
    assert policy.prepare(state) is state
    json.dumps(policy.report(state), allow_nan=False)
    ready = taught(policy, arms=2, reference=normal(20, 3, seed=0))
    policy.check_ready(ready)


@pytest.mark.parametrize(
    ("name", "output", "why"),
    [
        ("rke", torch.empty((0, 3)), "one or more"),
        ("rke", torch.ones((1, 2)), "length 3"),
        ("rke", torch.ones(3), "length 3"),
        ("rke", torch.tensor([[1.0, float("nan"), 0]]), "finite"),
        ("rke", torch.tensor([[1.0, float("inf"), 0]]), "finite"),
        ("fid", torch.tensor([[1.0, 1e200, 0]], dtype=torch.float64), "magnitude"),
        ("vendi cosine", torch.tensor([[1.0, 1, 1], [0, 0, 0]]), "no direction"),
        ("kid cosine", torch.tensor([[1e-200, 0, 0]], dtype=torch.float64), "no direction"),
    ],
)
def test_outputs_that_cannot_be_learned_are_refused(name: str, output: Tensor, why: str) -> None:
    with pytest.raises(InvalidObservation, match=why) as caught:
        form(name).check_observation(Observation(arm=0, output=output))
    assert caught.value.field == "output"


def test_a_vector_of_zeros_is_an_output_like_any_other_without_directions() -> None:
    for name in ("rke", "rke exact", "fid"):
        form(name).check_observation(Observation(arm=0, output=torch.zeros((2, 3))))
    with pytest.raises(InvalidObservation, match="no direction"):
        form("rke", normalize=True).check_observation(Observation(arm=0, output=torch.zeros((2, 3))))


def given_moments(**more: Any) -> Moments:
    usual: dict[str, Any] = {"mean": torch.zeros(3), "covariance": torch.eye(3), "count": 9}
    return Moments(**(usual | more))


@pytest.mark.parametrize(
    ("name", "seen", "why"),
    [
        ("rke", Observation(output=torch.ones((4, 3))), "takes no reference"),
        ("kid", Observation(moments=given_moments()), "samples, not moments"),
        ("kid", Observation(output=torch.ones((4, 2))), "length 3"),
        ("kid cosine", Observation(output=torch.zeros((4, 3))), "no direction"),
        ("fid", Observation(moments=given_moments(count=1)), "at least 2"),
        ("fid", Observation(moments=given_moments(mean=torch.zeros(2))), "must be"),
        ("fid", Observation(moments=given_moments(covariance=-torch.eye(3))), "semidefinite"),
        ("fid", Observation(moments=given_moments(covariance=torch.triu(torch.ones((3, 3))))), "symmetric"),
        ("fid", Observation(moments=given_moments(mean=torch.full((3,), math.inf))), "finite"),
        ("fid", Observation(moments=given_moments(), output=torch.ones((4, 3))), "combined"),
        ("kid exact", Observation(output=torch.ones((1, 3)).expand(REFERENCE_SAMPLES + 1, 3)), "at most"),
        ("rke+precision", Observation(output=torch.ones((1, 3)).expand(REFERENCE_SAMPLES + 1, 3)), "at most"),
    ],
)
def test_reference_material_that_cannot_be_used_is_refused(name: str, seen: Observation, why: str) -> None:
    policy = form(name)
    with pytest.raises(InvalidObservation, match=why):
        policy.check_reference(states.start(policy, arms=2), seen)


def test_moments_and_samples_of_a_reference_do_not_mix() -> None:
    policy = form("fid")
    with_moments = taught(policy, reference=given_moments())
    policy.check_reference(with_moments, Observation(moments=given_moments()))  # may be given again
    with pytest.raises(InvalidObservation, match="given as moments"):
        policy.check_reference(with_moments, Observation(output=torch.ones((4, 3))))
    with pytest.raises(InvalidObservation, match="combined"):
        policy.check_reference(taught(policy, reference=normal(5, 3, seed=0)), Observation(moments=given_moments()))
    with pytest.raises(NotImplementedError, match="takes no reference"):
        form("rke").update_reference(states.start(form("rke"), arms=1), Observation(output=torch.ones((4, 3))))


def test_a_large_reference_is_welcome_where_only_its_sum_is_kept() -> None:
    policy = form("kid", random_features=2)
    rows = normal(REFERENCE_SAMPLES + 50, 3, seed=0)
    policy.check_reference(states.start(policy, arms=2), Observation(output=rows))


def test_frequencies_are_those_of_the_squared_kernel_and_have_a_fingerprint() -> None:
    rke, kid = form("rke"), form("kid")
    torch.testing.assert_close(rke.frequencies, kid.frequencies * math.sqrt(2.0))
    assert len(rke.fingerprint) == 64
    assert rke.fingerprint != kid.fingerprint
    assert form("rke cosine").fingerprint == form("fid").fingerprint == form("rke exact").fingerprint == ""
    wide = MixtureGreedy(objective="vendi", bandwidth=1.5, output_dim=3, seed=5)
    assert wide.frequencies.shape == (256, 3)
    torch.testing.assert_close(wide.frequencies[:16], kid.frequencies)  # the first of the same stream


# -- wild data -------------------------------------------------------------------------------------------------------------

cells = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-9, 1e9, -3e4])
batches = st.lists(st.tuples(st.integers(0, 2), st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=3)), max_size=9)


@settings(max_examples=12, deadline=None)
@given(outcomes=batches)
@pytest.mark.parametrize("name", FORMS)
def test_whatever_came_back_the_answer_is_a_distribution_and_the_report_finite(
    name: str, outcomes: list[tuple[int, list[tuple[float, ...]]]]
) -> None:
    """Constant outputs, duplicate arms, one sample, none at all, wild scales."""
    policy = form(name)
    if "cosine" in name or "density" in name:
        outcomes = [(arm, [tuple(np.array(row) + 2.5) for row in rows]) for arm, rows in outcomes]
    state = taught(policy, *outcomes, arms=3, reference=reference_for(policy))
    for pending in ((0, 0, 0), (9, 9, 9)):
        answer = policy.weights(state, [free(3, pending=pending), Context(allowed=(False, True, True), pending=pending)])
        assert bool(answer.values.isfinite().all())
        assert float((answer.values.sum(1) - 1.0).abs().max()) <= 1e-12
        assert float(answer.values.min()) >= 0.0
    report = policy.report(state)
    json.dumps(report, allow_nan=False)
    assert report["samples"] == sum(len(rows) for _, rows in outcomes)


def test_the_report_of_an_empty_state_has_the_same_shape() -> None:
    for name in FORMS:
        policy, state = lesson(name)
        empty, full = policy.report(states.start(policy, arms=3)), policy.report(state)
        assert empty.keys() == full.keys()
        assert empty["objective"].keys() == full["objective"].keys()
        assert empty["arms"][0].keys() == full["arms"][0].keys()
        json.dumps(full, allow_nan=False)
        assert full["objective"]["direction"] == ("maximise" if policy.objective in ("rke", "vendi") else "minimise")
        assert full["objective"]["gap"] >= 0.0
        sign = -1.0 if full["objective"]["direction"] == "maximise" else 1.0
        assert sign * (full["objective"]["value"] - full["objective"]["optimum"]) >= -1e-6


# -- worlds: what is reached -----------------------------------------------------------------------------------------------


def in_world(policy: type[MixtureUcb] | type[MixtureGreedy], world: worlds_mixture.MixtureWorld, **more: Any) -> Any:
    return policy(output_dim=world.dim, **(world.hyperparameters | more))


def test_world_i4_ogd_shares_converge_to_the_best_mixture() -> None:
    world = worlds_mixture.i4_rke()
    shares = play(in_world(MixtureUcb, world, random_features=None, max_samples=3000), world, seed=1)
    assert np.abs(shares - world.best).sum() < 0.15
    assert world.excess(shares) < 0.002  # golden I4: .0004; uniform .0426, best single arm .24


def test_world_i4_cab_comes_close_to_a_target_that_no_arm_is() -> None:
    world = worlds_mixture.i4_kid()
    policy = in_world(MixtureUcb, world, method="cab", random_features=128)
    shares = play(policy, world, seed=2, rounds=800)
    assert world.excess(shares) < 0.03  # after 2,000: .0028 +- .0005; uniform .0622, best single arm .1095


def test_world_i4_theory_constants_explore_for_thousands_of_rounds() -> None:
    world = worlds_mixture.i4_kid()
    policy = in_world(MixtureUcb, world, preset="theory", random_features=128)
    shares = play(policy, world, seed=2, rounds=600)
    assert world.excess(shares) > 0.035


def test_world_i5_greedy_finds_the_nearest_mixture_of_gaussians() -> None:
    world = worlds_mixture.i5()
    shares = play(in_world(MixtureGreedy, world, refresh=5), world, seed=3, rounds=300)
    assert world.excess(shares) < 0.25  # uniform 2.43, best single arm 2.93


def test_world_i6_greedy_maximises_the_vendi_score() -> None:
    world = worlds_mixture.i6()
    shares = play(in_world(MixtureGreedy, world, initial_pulls=10), world, seed=4, rounds=600)
    assert shares[0] == pytest.approx(0.25, abs=0.06)  # golden I6: .252, the released rule .289
    assert math.exp(-world.loss(shares)) > 7.9


def test_world_i7_a_floor_keeps_the_best_arm_alive() -> None:
    """A bad first sample of the target arm: greedy without a floor may never look at it again, with a floor it comes back."""
    world = worlds_mixture.i7()
    policy = in_world(MixtureGreedy, world, random_features=None, initial_pulls=1, floor=0.1)
    outcomes = [(0, [[6.0, -5.0]]), (1, normal(200, 2, seed=1) + tensor([0.6, 0.0]))]
    starved = taught(replace(policy, floor=0.0), *outcomes, reference=normal(500, 2, seed=2))
    assert replace(policy, floor=0.0).weights(starved, [free(2)]).values[0, 0] < 0.05
    state = taught(policy, *outcomes, reference=normal(500, 2, seed=2))
    rng = np.random.default_rng(0)
    for _ in range(300):
        arm = int(rng.random() > policy.weights(state, [free(2)]).values[0, 0])
        rows = torch.from_numpy(world.samplers[arm](rng, 1))
        state = policy.prepare(states.fold(policy, state, Observation(arm=arm, output=rows)))
    assert policy.weights(state, [free(2)]).values[0, 0] > 0.5


def test_the_closed_forms_of_the_worlds_are_the_golden_ones() -> None:
    rke, kid = worlds_mixture.i4_rke(), worlds_mixture.i4_kid()
    assert rke.loss(rke.best) == pytest.approx(0.20265938168559453, abs=1e-12)  # golden C2
    assert 1 / rke.loss(np.ones(4) / 4) == pytest.approx(4.078111367472047, abs=1e-9)
    assert kid.loss(kid.best) == pytest.approx(0.22363754475076209, abs=1e-12)  # golden C3b
    singles = [0.5862015164912684, 1.062814562273535, 0.8395549561873115, 0.3331011660625345]
    assert [kid.loss(vertex) for vertex in np.eye(4)] == pytest.approx(singles, abs=1e-9)
    fid, vendi = worlds_mixture.i5(), worlds_mixture.i6()
    assert fid.loss(fid.best) == pytest.approx(0.2661434337589341, abs=1e-9)  # golden B3
    assert vendi.loss(vendi.best) == pytest.approx(-math.log(8.0))  # golden D1
    assert math.exp(-vendi.loss(np.array([0.5, 0.5]))) == pytest.approx(6.928203230275509)


def test_a_blank_arm_has_the_layout_that_its_form_packs() -> None:
    for name in FORMS:
        policy = form(name)
        blank = policy.init()
        assert blank.pulls == blank.count == 0
        assert isinstance(blank, MixtureArm) != (policy.objective == "fid")
