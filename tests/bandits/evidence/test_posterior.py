"""Posterior and evidence against a dense Gaussian process over all outcomes of all arms."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose

from bandits.evidence import posterior as posteriors
from bandits.evidence.features import EvidenceFeatures
from bandits.evidence.posterior import Fit, Posterior, Preparation, Scales
from bandits.evidence.sums import EvidenceArm
from tests.bandits.evidence.runs import Floats, GaussianProcess, tensor

close = partial(assert_allclose, rtol=1e-10, atol=1e-10)

ARMS, FEATURES = 3, EvidenceFeatures(3, seed=5)


class Sums:
    """Outcomes of three arms, one of them without any in the end, and what is kept of them."""

    def __init__(self, outcomes: int = 24, *, signals: int = 1, missing: float = 0.0, arms: int = ARMS) -> None:
        g = default_rng(1)
        self.x, self.arms = g.standard_normal((outcomes, 3)), g.integers(0, arms, outcomes)
        self.values = (
            g.standard_normal((outcomes, signals)) + 0.4 * self.arms[:, None] + self.x[:, :1] * (self.arms == 1)[:, None]
        )
        if signals > 1:
            self.values[g.random(outcomes) < missing, 1] = np.nan
        self.z = np.stack([FEATURES.lift(tensor(x)).z for x in self.x])
        kept = [EvidenceArm.init(size=FEATURES.size, signals=signals) for _ in range(arms)]
        for arm, x, z, values in zip(self.arms, self.x, self.z, self.values, strict=True):
            kept[arm] = kept[arm].update(tensor(x), z, values, FEATURES)
        self.kept = tuple(kept)

    def posterior(self, *, active: tuple[bool, ...] | None = None, before: Posterior | None = None) -> Posterior:
        due = Preparation(len(self.x), self.kept, active or (True,) * len(self.kept), has_all=True)
        return posteriors.prepare(due, before, FEATURES, signals=self.values.shape[1])


def dense(sums: Sums, posterior: Posterior, *, model: int, signal: int = 0) -> GaussianProcess:
    """The process of which a fit must be the posterior: all outcomes that carry the signal, standardized, at the fit's scales."""
    one, basis = posterior.signals[signal], posterior.basis
    scales, own = one.fits[model].scales, one.fits[model].own
    T, D = np.full(basis.size, 1.0 / posteriors.INTERCEPT_VARIANCE), np.full(own, 1.0 / scales.level)
    for block, span in enumerate(basis.spans):
        T[span] = 1.0 / scales.shared[block]
        if own > 1:
            D[span] = 1.0 / scales.own[block]
    carrying = np.isfinite(sums.values[:, signal])
    w = basis.apply(sums.z[carrying].T).T
    y = (sums.values[carrying, signal] - one.mean) / one.root
    return GaussianProcess(T, D, scales.noise, sums.arms[carrying], w, y)


def assert_is_posterior(fit: Fit, process: GaussianProcess, *, arm: int) -> None:
    mean, _ = process.of(arm, np.eye(len(process.T)))
    close(fit.theta[arm], mean)
    _, covariance = process.of(arm, np.eye(fit.own, len(process.T)))
    close(fit.covariance(arm), covariance)


@pytest.mark.parametrize("model", [0, 1])
def test_posterior_and_evidence_are_those_of_a_dense_gaussian_process(model: int) -> None:
    sums = Sums()
    posterior = sums.posterior()
    fit, process = posterior.signals[0].fits[model], dense(sums, posterior, model=model)
    for arm in range(ARMS):
        assert_is_posterior(fit, process, arm=arm)
    close(fit.evidence, process.log_evidence)


def test_standardization_uses_pooled_mean_and_variance() -> None:
    sums = Sums()
    one = sums.posterior().signals[0]
    close([one.mean, one.root], [sums.values.mean(), sums.values.std()])


def test_a_basis_has_blocks_of_variance_one_and_mean_zero_over_the_prompts() -> None:
    sums = Sums()
    basis = sums.posterior().basis
    w = np.stack([basis.project(z) for z in sums.z])
    close(w[:, 0], 1.0)
    for span in basis.spans:
        close(w[:, span].mean(0), 0.0)
        close(w[:, span].var(0).sum(), 1.0)
    close(w, basis.apply(sums.z.T).T)


def test_the_evidence_grows_with_the_sweeps() -> None:
    sums = Sums(60)
    found = [sums.posterior()]
    for _ in range(6):
        found.append(sums.posterior(before=found[-1]))
    evidence = [one.signals[0].fits[0].evidence for one in found]
    assert evidence == sorted(evidence)


def test_one_more_outcome_is_exact_for_its_arm() -> None:
    sums = Sums()
    posterior = sums.posterior()
    process, x = dense(sums, posterior, model=0), tensor(np.array([0.3, -1.0, 0.2]))
    w, one = FEATURES.lift(x).within(posterior.basis), posterior.signals[0]
    stepped = posterior.step(1, w, [0.7])
    assert_is_posterior(stepped.signals[0].fits[0], process.with_outcome(1, w, (0.7 - one.mean) / one.root), arm=1)
    for arm in (0, 2):  # the others learn of it at the next preparation
        assert_is_posterior(stepped.signals[0].fits[0], process, arm=arm)


def test_many_outcomes_are_exact_before_and_after_their_gains_are_joined() -> None:
    sums, g = Sums(), default_rng(8)
    posterior = sums.posterior()
    process, one = dense(sums, posterior, model=0), posterior.signals[0]
    count = posteriors.MOST_GAINS + 6
    for t, (x, value) in enumerate(zip(g.standard_normal((count, 3)), g.standard_normal(count), strict=True)):
        w = FEATURES.lift(tensor(x)).within(posterior.basis)
        posterior = posterior.step(1 if t % 3 else 2, w, [value])
        if t % 3:
            process = process.with_outcome(1, w, (value - one.mean) / one.root)
    fit = posterior.signals[0].fits[0]
    assert fit.apart == sum(map(len, fit.gains)) == 6
    assert_is_posterior(fit, process, arm=1)
    close(fit.variances(w)[1], w @ fit.covariance(1) @ w)
    forgotten = posterior.forget(1).signals[0].fits[0]
    assert forgotten.apart == sum(map(len, forgotten.gains)) == 2


def test_bytes_give_the_same_bits() -> None:
    sums, g = Sums(), default_rng(8)
    posterior, pending = sums.posterior(), [(g.standard_normal(3).tobytes(),), (), ()]
    for x in g.standard_normal((7, 3)):
        posterior = posterior.step(1, FEATURES.lift(tensor(x)).within(posterior.basis), [0.3])
    restored = posteriors.from_tensors(*posteriors.to_tensors(posterior))
    x, later = (FEATURES.lift(tensor(one)) for one in g.standard_normal((2, 3)))

    def scores(one: Posterior) -> list[list[float]]:
        def project(x: bytes) -> Floats:
            return FEATURES.lift_bytes(x).within(one.basis)

        moved = one.step(0, x.within(one.basis), [1.5])
        return [found.tolist() for found in moved.scores(0, later.within(one.basis), pending, project, None)]

    assert scores(restored) == scores(posterior)


def test_pending_decisions_narrow_the_width_as_their_outcomes_would() -> None:
    sums = Sums()
    posterior = sums.posterior()
    process = dense(sums, posterior, model=0)
    first, second = default_rng(2).standard_normal((2, 3))
    pending: list[tuple[bytes, ...]] = [(), (first.tobytes(), second.tobytes()), ()]
    at = FEATURES.lift(tensor(np.array([0.1, 0.2, -0.4]))).within(posterior.basis)
    for x in (first, second):
        process = process.with_outcome(1, FEATURES.lift(tensor(x)).within(posterior.basis), 0.0)

    def project(x: bytes) -> Floats:
        return FEATURES.lift_bytes(x).within(posterior.basis)

    mean, variance = posterior.scores(0, at, pending, project, None)
    plain, wider = posterior.scores(0, at, [()] * ARMS, project, np.ones(ARMS, dtype=bool))
    close(mean, plain)
    assert variance[1] < wider[1]
    one = posterior.signals[0]
    assert one.trust is not None
    _, width = process.of(1, at[None])
    level = float(one.fits[1].covariance(1)[0, 0])
    level = 1.0 / (1.0 / level + 2.0 / one.fits[1].scales.noise)
    means = [fit.theta @ at for fit in one.fits]
    shifted = means[1] - means[1].mean() + means[0].mean()
    spread = one.trust * (1 - one.trust) * (means[0] - shifted)[1] ** 2
    close(variance[1], one.root**2 * (one.trust * width[0, 0] + (1 - one.trust) * level + spread))


def test_what_is_remembered_of_open_decisions_keeps_no_covariances_of_the_past() -> None:
    sums, g = Sums(), default_rng(8)
    posterior, pending = sums.posterior(), [(g.standard_normal(3).tobytes(),), (), ()]
    w = FEATURES.lift(tensor(g.standard_normal(3))).within(posterior.basis)

    def scores(one: Posterior) -> list[list[float]]:
        found = one.scores(0, w, pending, lambda x: FEATURES.lift_bytes(x).within(one.basis), None)
        return [part.tolist() for part in found]

    scores(posterior)
    before = weakref.ref(posterior.signals[0].fits[0].covariances)
    for value in g.standard_normal(posteriors.MOST_GAINS):
        posterior = posterior.step(1, w, [value])
    assert posterior.narrowings
    assert before() is None
    assert scores(posterior) == scores(posteriors.from_tensors(*posteriors.to_tensors(posterior)))
    posterior = posterior.forget(0)
    assert scores(posterior) == scores(posteriors.from_tensors(*posteriors.to_tensors(posterior)))


def test_a_new_arm_is_what_arms_are_by_the_prior() -> None:
    sums = Sums()
    posterior = sums.posterior()
    fit = posterior.with_arms(ARMS + 1).signals[0].fits[0]
    assert_is_posterior(fit, dense(sums, posterior, model=0), arm=ARMS)
    forgotten = posterior.forget(1).signals[0].fits[0]
    close(forgotten.theta[1], fit.theta[ARMS])
    close(forgotten.covariance(1), fit.covariance(ARMS))


def test_retired_arms_say_nothing_about_what_arms_have_in_common() -> None:
    sums = Sums(arms=4)
    active = (True, True, False, True)
    found = sums.posterior(active=active)
    sums.kept = tuple(arm for arm, counts in zip(sums.kept, active, strict=True) if counts)
    without = sums.posterior()
    for one, other in zip(found.signals[0].fits, without.signals[0].fits, strict=True):
        assert one.scales.noise == other.scales.noise
        assert one.scales.level == other.scales.level
        close(one.evidence, other.evidence)
        close(one.theta[[0, 1, 3]], other.theta)
    assert (found.signals[0].mean, found.signals[0].root) == (without.signals[0].mean, without.signals[0].root)


def test_a_signal_that_is_missing_in_most_outcomes_is_estimated_from_the_others_alone() -> None:
    sums = Sums(80, signals=2, missing=0.9)
    assert 0 < np.isfinite(sums.values[:, 1]).sum() <= 12
    posterior = sums.posterior()
    for signal in (0, 1):
        for model in (0, 1):
            fit, process = posterior.signals[signal].fits[model], dense(sums, posterior, model=model, signal=signal)
            for arm in range(ARMS):
                assert_is_posterior(fit, process, arm=arm)
            close(fit.evidence, process.log_evidence)


def test_without_a_prompt_arms_differ_in_their_level_alone() -> None:
    features = EvidenceFeatures(0, seed=0)
    kept = [EvidenceArm.init(size=1, signals=1) for _ in range(2)]
    rewards = [[0.1, 0.4, 0.3], [0.9, 0.6]]
    for arm, values in enumerate(rewards):
        for value in values:
            kept[arm] = kept[arm].update(tensor(np.empty(0)), np.ones(1), [value], features)
    posterior = posteriors.prepare(Preparation(5, tuple(kept), (True, True), has_all=True), None, features, signals=1)
    one = posterior.signals[0]
    assert one.trust is None
    (fit,) = one.fits
    y = (np.concatenate(rewards) - one.mean) / one.root
    process = GaussianProcess(
        np.array([1.0 / posteriors.INTERCEPT_VARIANCE]),
        np.array([1.0 / fit.scales.level]),
        fit.scales.noise,
        np.array([0, 0, 0, 1, 1]),
        np.ones((5, 1)),
        y,
    )
    for arm in range(2):
        assert_is_posterior(fit, process, arm=arm)
    close(fit.evidence, process.log_evidence)


def test_bytes_come_back_to_the_last_bit() -> None:
    posterior = Sums(signals=2, missing=0.5).posterior()
    tensors, about = posteriors.to_tensors(posterior)
    again = posteriors.from_tensors(tensors, about)
    w = np.ones(posterior.basis.size)
    for signal in (0, 1):
        for one, other in zip(
            posterior.scores(signal, w, [()] * ARMS, FEATURES.lift, np.ones(ARMS, dtype=bool)),  # type: ignore[arg-type]
            again.scores(signal, w, [()] * ARMS, FEATURES.lift, np.ones(ARMS, dtype=bool)),  # type: ignore[arg-type]
            strict=True,
        ):
            assert (one == other).all()


def test_start_scales_share_what_the_prompt_may_explain() -> None:
    scales = Scales.start(blocks=3, arms=5)
    close([scales.noise, scales.level], [1.0, 0.05])
    close(scales.own, 0.5 / 15)
    close(scales.shared, 0.5 / 15)


def test_values_alike_have_no_variance() -> None:
    assert posteriors.pooled_moments(np.array([2.0]), np.array([2e12]), np.array([2e24])) == (1e12, 0.0)
    assert posteriors.pooled_moments(np.zeros(2), np.zeros(2), np.zeros(2)) == (0.0, 0.0)
