"""Scores of (prompt, output) pairs and the labels made from them: golden G3, brute force over pairs, closed forms, bounds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits.functional import diversity, kernels
from bandits.functional import joint_diversity as joint


def unit(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array / np.linalg.norm(array, axis=-1, keepdims=True))


def golden_points() -> tuple[Tensor, Tensor, Tensor]:
    """Golden G3: prompts, outputs, references, six each on the sphere in R^3."""
    g = np.random.default_rng(5)
    return unit(g.standard_normal((6, 3))), unit(g.standard_normal((6, 3))), unit(g.standard_normal((6, 3)))


T, X, Y = golden_points()


def k(a: Tensor, b: Tensor, bandwidth: float = 1.0) -> Tensor:
    return kernels.gaussian(a, b, bandwidth=bandwidth)


def k_pair(a: Tensor, b: Tensor, bandwidth: float) -> float:
    """One kernel value, from its definition."""
    return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / (2.0 * bandwidth**2))


def spectra(prompts: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joint, prompts, outputs."""
    return tuple(diversity.gram_spectrum(gram) for gram in (prompts * outputs, prompts, outputs))  # type: ignore[return-value]


# -- golden G3 ---------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_golden_g3() -> None:
    kt, kx, ky, kxy = k(T, T), k(X, X), k(Y, Y), k(X, Y)
    assert joint.inverse_joint_rke(kt, kx) == pytest.approx(0.2053828892539464, abs=1e-12)
    assert joint.inverse_joint_rke(kt, kx, unbiased=True) == pytest.approx(0.04645946710473571, abs=1e-12)
    assert joint.joint_rke(kt, kx) == pytest.approx(4.868954778231532, abs=1e-11)
    assert joint.joint_kernel_distance(kt, kx, ky, kxy) == pytest.approx(0.1642238683496419, abs=1e-12)
    assert joint.joint_kernel_distance(kt, kx, ky, kxy, unbiased=True) == pytest.approx(-0.03002216886573514, abs=1e-12)
    assert joint.conditional_rke(kt, kx) == pytest.approx(1.5043396353733174, abs=1e-11)


def test_spectral_scores_are_those_of_golden_g3() -> None:
    both, prompts, outputs = spectra(k(T, T), k(X, X))
    assert joint.conditional_vendi(both, prompts) == pytest.approx(1.326193091292387, abs=1e-10)
    assert joint.information_vendi(both, prompts, outputs) == pytest.approx(2.289163808260699, abs=1e-10)
    assert joint.conditional_vendi(both, prompts, order=2.0) == pytest.approx(1.5043396353733174, abs=1e-10)
    assert joint.information_vendi(both, prompts, outputs, order=2.0) == pytest.approx(1.5565147181114856, abs=1e-10)


G3_RKE_LABELS = [0, 0.0032722648468149103, 0.06903852324596138, 0.02393972456317518, 0.015703875373019024, 0.08418160401013927]
G3_JKD_LABELS = [0, 0.031019089443753655, 0.07259677362928912, -0.1306136738707354, -0.04835748448467729, -0.008254842027488751]


def exact_labels(kind: str, *, normalize: bool = False) -> list[float]:
    labels = []
    for i in range(6):
        t, x, y, past = T[i : i + 1], X[i : i + 1], Y[i : i + 1], slice(0, i)
        if kind == "rke":
            labels.append(joint.inverse_joint_rke_label(k(t, T[past])[0], k(x, X[past]), normalize=normalize))
        else:
            four = k(x, X[past]), k(y, Y[past]), k(x, Y[past]), k(y, X[past])
            labels.append(joint.joint_kernel_distance_label(k(t, T[past])[0], *four, normalize=normalize))
    return labels


def feature_labels(kind: str, w: Tensor) -> list[float]:
    """Labels of G3 by sums of random features."""
    prompts, outputs, references = (
        joint.phases(points, part, bandwidth=1.0) for points, part in ((T, w[:, :3]), (X, w[:, 3:]), (Y, w[:, 3:]))
    )
    if kind == "rke":
        features = joint.phase_features(joint.SQUARED * (prompts + outputs))
    else:
        features = joint.phase_features(prompts + outputs) - joint.phase_features(prompts + references)
    return [float(features[i] @ features[:i].sum(0)) / i if i else 0.0 for i in range(6)]


def test_causal_labels_are_those_of_golden_g3() -> None:
    assert exact_labels("rke") == pytest.approx(G3_RKE_LABELS, abs=1e-12)
    assert exact_labels("jkd") == pytest.approx(G3_JKD_LABELS, abs=1e-12)


def test_labels_by_2048_random_frequencies_are_those_of_golden_g3() -> None:
    w = torch.from_numpy(np.random.default_rng(21).standard_normal((2048, 6)))
    rke = [0, 0.01701391689493993, 0.06872315717188612, 0.022505566702072377, 0.005221256370133775, 0.08604841985323795]
    jkd = [0, 0.04072774504454837, 0.08395079570821776, -0.14399109501282242, -0.0476825191647553, -0.00600934112333428]
    assert feature_labels("rke", w) == pytest.approx(rke, abs=1e-12)
    assert feature_labels("jkd", w) == pytest.approx(jkd, abs=1e-12)


def test_the_numbers_published_with_the_released_code_come_out() -> None:
    """Golden G3: two runs of three items, embeddings of lengths 768, 512, 512, kernels exp(-|x - y|^2), averaged."""
    g, found = np.random.default_rng(42), []
    for _ in range(2):
        rows = [[g.standard_normal(length) for length in (768, 512, 512)] for _ in range(3)]
        t, y, x = (unit(np.array(column)) for column in zip(*rows, strict=True))
        grams = [k(a, b, math.sqrt(0.5)) for a, b in ((t, t), (x, x), (y, y), (x, y))]
        distance = diversity.kernel_distance(*grams[1:], unbiased=False)
        found.append([joint.inverse_joint_rke(grams[0], grams[1]), distance])
    assert np.mean(found, axis=0).tolist() == pytest.approx([0.3335544368983878, 0.5783931937835641], abs=1e-11)


# -- brute force and identities --------------------------------------------------------------------------------------------------


def test_scores_equal_loops_over_pairs() -> None:
    s_t, s_x, n = 0.7, 1.3, 6
    rke, jkd = [], []
    for i, j in itertools.product(range(n), range(n)):
        kt = k_pair(T[i], T[j], s_t)
        xx, yy, xy, yx = (k_pair(a[i], b[j], s_x) for a, b in ((X, X), (Y, Y), (X, Y), (Y, X)))
        rke.append((i == j, kt**2 * xx**2))
        jkd.append((i == j, kt * (xx + yy - xy - yx)))
    grams = k(T, T, s_t), k(X, X, s_x), k(Y, Y, s_x), k(X, Y, s_x)
    for unbiased in (False, True):
        pairs = n * (n - 1) if unbiased else n * n
        expected_rke = sum(value for same, value in rke if not (same and unbiased)) / pairs
        expected_jkd = sum(value for same, value in jkd if not (same and unbiased)) / pairs
        assert joint.inverse_joint_rke(grams[0], grams[1], unbiased=unbiased) == pytest.approx(expected_rke, abs=1e-13)
        assert joint.joint_kernel_distance(*grams, unbiased=unbiased) == pytest.approx(expected_jkd, abs=1e-13)


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 2.0, 7.0, math.inf])
def test_conditional_and_information_vendi_follow_from_eigenvalues_in_every_order(order: float) -> None:
    kt, kx = k(T, T, 0.8).numpy(), k(X, X, 1.4).numpy()

    def entropy(gram: np.ndarray) -> float:
        shares = np.linalg.eigvalsh(gram / len(gram))
        if order == 1.0:
            return float(-(shares * np.log(shares)).sum())
        if order == math.inf:
            return float(-np.log(shares.max()))
        return float(np.log((shares**order).sum()) / (1.0 - order))

    both, prompts, outputs = spectra(torch.from_numpy(kt), torch.from_numpy(kx))
    conditional = math.exp(entropy(kt * kx) - entropy(kt))
    information = math.exp(entropy(kx) + entropy(kt) - entropy(kt * kx))
    assert joint.conditional_vendi(both, prompts, order=order) == pytest.approx(conditional, rel=1e-9)
    assert joint.information_vendi(both, prompts, outputs, order=order) == pytest.approx(information, rel=1e-9)


def test_the_mean_label_against_all_others_is_the_unbiased_score() -> None:
    kt, kx, ky, kxy = k(T, T), k(X, X), k(Y, Y), k(X, Y)
    rke, jkd = [], []
    for i in range(6):
        rest = [j for j in range(6) if j != i]
        rke.append(joint.inverse_joint_rke_label(kt[i, rest], kx[i : i + 1, rest], normalize=False))
        four = kx[i : i + 1, rest], ky[i : i + 1, rest], kxy[i : i + 1, rest], kxy.T[i : i + 1, rest]
        jkd.append(joint.joint_kernel_distance_label(kt[i, rest], *four, normalize=False))
    assert np.mean(rke) == pytest.approx(joint.inverse_joint_rke(kt, kx, unbiased=True), abs=1e-14)
    assert np.mean(jkd) == pytest.approx(joint.joint_kernel_distance(kt, kx, ky, kxy, unbiased=True), abs=1e-14)


def test_normalised_labels_divide_by_the_prompt_kernel() -> None:
    for i, label in enumerate(exact_labels("rke", normalize=True)):
        weights = [k_pair(T[i], T[j], 1.0) ** 2 for j in range(i)]
        values = [w * k_pair(X[i], X[j], 1.0) ** 2 for j, w in enumerate(weights)]
        assert label == pytest.approx(sum(values) / sum(weights) if i else 0.0, abs=1e-13)
        assert 0.0 <= label <= 1.0
    for i, label in enumerate(exact_labels("jkd", normalize=True)):
        weight = sum(k_pair(T[i], T[j], 1.0) for j in range(i))
        assert label == pytest.approx(i * G3_JKD_LABELS[i] / weight if i else 0.0, abs=1e-12)


def test_the_label_of_several_samples_is_the_mean_of_their_labels() -> None:
    kt, past = k(T[5:], T[:5])[0], X[:5]
    each = [joint.inverse_joint_rke_label(kt, k(row[None], past), normalize=False) for row in Y]
    assert joint.inverse_joint_rke_label(kt, k(Y, past), normalize=False) == pytest.approx(np.mean(each), abs=1e-15)


def test_the_phases_of_one_point_are_its_row_among_many() -> None:
    """With frequencies that are some columns of wider ones, as those of prompts and outputs are."""
    wide = torch.from_numpy(np.random.default_rng(3).standard_normal((50, 9)))
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((6, 4)))
    many = joint.phases(x, wide[:, 5:], bandwidth=0.7)
    for i in range(6):
        torch.testing.assert_close(joint.phases(x[i], wide[:, 5:], bandwidth=0.7), many[i], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            joint.phases(x[i : i + 1], wide[:, 5:], bandwidth=0.7), many[i : i + 1], rtol=1e-13, atol=1e-13
        )
    assert joint.phases(x[:0], wide[:, 5:], bandwidth=0.7).shape == (0, 50)


def test_features_of_summed_phases_estimate_the_product_kernel_by_an_average_of_cosines() -> None:
    w = torch.from_numpy(np.random.default_rng(3).standard_normal((37, 6)))
    phases = joint.phases(T, w[:, :3], bandwidth=0.6) + joint.phases(X, w[:, 3:], bandwidth=1.7)
    features = joint.phase_features(phases)
    for i, j in ((0, 0), (1, 4), (5, 2)):
        difference = torch.cat([(T[i] - T[j]) / 0.6, (X[i] - X[j]) / 1.7])
        assert float(features[i] @ features[j]) == pytest.approx(float(torch.cos(w @ difference).mean()), abs=1e-14)


# -- bounds and extremes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "values"), [("rke", 1), ("jkd", 4)])
def test_random_feature_labels_stay_within_the_stated_error(kind: str, values: int) -> None:
    exact, count, delta = np.array(exact_labels(kind)), 64, 0.05
    errors = np.array(
        [
            np.array(feature_labels(kind, torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 6))))) - exact
            for seed in range(300)
        ]
    )
    bound = joint.label_error(count, kernels=values, delta=delta)
    assert bound == pytest.approx(values * math.sqrt(2 * math.log(40) / 64), rel=1e-12)
    assert (np.abs(errors) > bound).mean(0).max() <= delta
    assert errors.std(0).max() <= values / math.sqrt(count)
    assert errors.std(0)[1:].min() > 0.02  # and there is something to bound
    assert np.abs(errors.mean(0)).max() < 4 * values / math.sqrt(count * 300)  # no bias


def test_equal_pairs_have_no_diversity_and_far_ones_all_of_it() -> None:
    same, far = torch.ones((4, 4), dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    assert joint.inverse_joint_rke(same, same) == 1.0
    assert joint.inverse_joint_rke(far, far) == joint.inverse_joint_rke(same, far) == 0.25
    assert joint.inverse_joint_rke(far, far, unbiased=True) == 0.0
    one_prompt = spectra(same, far)
    assert joint.conditional_vendi(*one_prompt[:2]) == pytest.approx(4.0, abs=1e-9)
    assert joint.information_vendi(*one_prompt) == pytest.approx(1.0, abs=1e-9)
    far_prompts = spectra(far, far)
    assert joint.conditional_vendi(*far_prompts[:2]) == pytest.approx(1.0, abs=1e-9)
    assert joint.information_vendi(*far_prompts) == pytest.approx(4.0, abs=1e-9)
    assert joint.conditional_rke(same, far) == 4.0
    assert joint.conditional_rke(far, same) == 1.0


def test_outputs_that_are_the_references_have_distance_zero() -> None:
    kt, kx = k(T, T), k(X, X)
    assert joint.joint_kernel_distance(kt, kx, kx, kx) == pytest.approx(0.0, abs=1e-16)
    row = kx[5:, :5]
    assert joint.joint_kernel_distance_label(kt[5, :5], row, row, row, row, normalize=True) == 0.0


def test_an_empty_history_gives_the_label_zero() -> None:
    none, row = torch.zeros(0, dtype=torch.float64), torch.zeros((2, 0), dtype=torch.float64)
    for normalize in (False, True):
        assert joint.inverse_joint_rke_label(none, row, normalize=normalize) == 0.0
        assert joint.joint_kernel_distance_label(none, row, row, row, row, normalize=normalize) == 0.0


def test_a_normalised_label_among_prompts_that_are_infinitely_far_is_zero() -> None:
    nothing, row = torch.zeros(3, dtype=torch.float64), torch.ones((1, 3), dtype=torch.float64)
    assert joint.inverse_joint_rke_label(nothing, row, normalize=True) == 0.0


def test_the_unbiased_form_needs_two_samples() -> None:
    one = torch.ones((1, 1), dtype=torch.float64)
    with pytest.raises(ValueError, match="two samples"):
        joint.inverse_joint_rke(one, one, unbiased=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from([0.05, 0.6, 3.0]), st.sampled_from([0.05, 0.9, 20.0]))
def test_scores_stay_in_range_and_ignore_the_order_of_samples(seed: int, n: int, s_t: float, s_x: float) -> None:
    g = torch.Generator().manual_seed(seed)
    t, x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for _ in range(3))
    x[0] = x[-1]  # a repeated output
    shuffled = torch.randperm(n, generator=g)
    found = []
    for rows in (torch.arange(n), shuffled):
        kt, kx = k(t[rows], t[rows], s_t), k(x[rows], x[rows], s_x)
        both, prompts, outputs = spectra(kt, kx)
        found.append(
            [
                joint.inverse_joint_rke(kt, kx),
                joint.joint_kernel_distance(kt, kx, k(y[rows], y[rows], s_x), k(x[rows], y[rows], s_x)),
                joint.conditional_rke(kt, kx),
                joint.conditional_vendi(both, prompts, order=1.5),
                joint.information_vendi(both, prompts, outputs, order=1.5),
            ]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-13)
    rke, jkd, conditional, vendi, _ = found[0]
    assert 1.0 / n - 1e-12 <= rke <= 1.0 + 1e-12
    assert -1e-13 <= jkd <= 4.0
    assert 1.0 - 1e-12 <= conditional <= n + 1e-9
    assert 0.0 < vendi <= n + 1e-9
