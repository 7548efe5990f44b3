"""The posterior that `auto` decides by: a Gaussian process per arm with everything shared that arms have in common.

    value of arm a at prompt w = w'(theta_0 + delta_a) + noise     w = B z, z = [1 | x | RFF 1 | RFF 1/2], y standardized
    theta_0 ~ N(0, T^-1)    delta_a ~ N(0, D^-1)    noise ~ N(0, s2)    T, D: one scale per block of z

    M1  as above: the prompt may change which arm is best        trust = P(M1 | outcomes), by the evidence of both
    M0  arms differ by their level alone (delta_a has one entry)

With H_a = B G_a B' / s2 and h_a = (B g_a - mu B G_a e_1) / (sqrt(V) s2):

    Pi_a = (D + H_a)^-1      S_a = Pi_a H_a      Q = T + sum_a D S_a      C0 = Q^-1      v = D sum_a Pi_a h_a
    theta_0 = C0 v           delta_a = Pi_a h_a - S_a theta_0
    cov(theta_a) = Pi_a + A_a C0 A_a', A_a = I - S_a      cov(delta_a) = Pi_a + S_a C0 S_a'
    -2 log evidence = N log s2 + sum_a (log|D + H_a| - log|D|) + log|Q| - log|T| + y'y/s2 - sum_a h_a' Pi_a h_a - v' theta_0

The width is the marginal one, theta_0 integrated out: the one conditional on theta_0 is too narrow early, and starts slowly.
Scales and noise follow MacKay's fixed point (1992, Bayesian interpolation, eq. 5.5 to 5.9): squares over directions
that the outcomes determine.
Between two preparations an outcome moves its own arm only (recursive least squares at fixed scales).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bandits.evidence.basis import Basis
from bandits.evidence.features import EvidenceFeatures
from bandits.evidence.sums import EvidenceArm, pooled
from bandits.functional.kernels import product

Floats = NDArray[np.float64]
Project = Callable[[bytes], Floats]
"""The prompt of an open decision, as `EvidenceArm.pending` has it -> w (q,)."""

# Hyperpriors in pseudo-counts: (directions, fraction of the pooled variance). Free of units; not set per table.
ARM_PRIOR = (1.0, 0.05)
BLOCK_PRIOR = (2.0, 0.5)
"""What the prompt may explain in all arms and blocks together: each of K arms and J blocks starts at its share."""
NOISE_PSEUDO_OUTCOMES = 20.0
"""Outcomes at s2 = 1 that are assumed: with 2 of them noise is underestimated early, and runs lock on an arm."""
INTERCEPT_VARIANCE = 100.0
SWEEPS = 2
LARGEST_STEP = 4.0
"""A sweep moves a scale by at most this factor."""
LEAST_TRUST = 0.1
"""The weight that M1 keeps: what is given up on few outcomes could not come back."""
MOST_GAINS = 64
"""Outcomes, of all arms, that are kept apart from the covariances: one costs a row then, and not a matrix."""
MOST_PENDING = 64
"""Open decisions of an arm that narrow its width; by then it is narrow."""


class Scales(NamedTuple):
    """Variances that the evidence sets. noise: s2.  level: of an arm's intercept.  own, shared: (J,) per block."""

    noise: float
    level: float
    own: Floats
    shared: Floats

    @staticmethod
    def start(*, blocks: int, arms: int) -> Scales:
        """Before any evidence."""
        share = np.full(blocks, BLOCK_PRIOR[1] / arms / max(blocks, 1))
        return Scales(1.0, ARM_PRIOR[1], share, share.copy())


class Projected(NamedTuple):
    """The sums of one signal in the basis, standardized.

    counts: (K,).  gram: (K, q, q).  moments: (K, q) sum y w.  squares: (K,) sum y^2.  active: (K,) arms that are not retired:
    they alone say what arms have in common.
    """

    counts: Floats
    gram: Floats
    moments: Floats
    squares: Floats
    active: NDArray[np.bool_]


class _Solution(NamedTuple):
    """All that follows from the sums at given scales; names as in the formulas above, `own` = entries of delta_a."""

    own: int
    D: Floats
    T: Floats
    H: Floats
    y: Floats
    P: Floats
    Pi: Floats
    S: Floats
    Py: Floats
    total: Floats
    left: Floats
    v: Floats
    Q: Floats
    C0: Floats
    theta_0: Floats
    delta: Floats


def _solve(sums: Projected, spans: Sequence[slice], scales: Scales, own: int) -> _Solution:
    q, active = sums.gram.shape[1], sums.active
    i = np.arange(own)
    D, T = np.full(own, 1.0 / scales.level), np.full(q, 1.0 / INTERCEPT_VARIANCE)
    for block, span in enumerate(spans):
        T[span] = 1.0 / scales.shared[block]
        if own > 1:
            D[span] = 1.0 / scales.own[block]
    H, y = sums.gram / scales.noise, sums.moments / scales.noise
    P = H[:, :own, :own].copy()
    P[:, i, i] += D
    Pi = np.asarray(np.linalg.inv(P), dtype=np.float64)
    S: Floats = Pi @ H[:, :own]
    Py: Floats = (Pi @ y[:, :own, None])[:, :, 0]
    # sum_a (H - H S) and sum_a (y - H Py); the rows of delta in a form that does not cancel: H - H S = D S there
    total = H[active].sum(0)
    left, v = total.copy(), y[active].sum(0)
    if own < q:
        left[own:] -= np.einsum("aij,ajl->il", H[active, own:, :own], S[active])
        v[own:] -= np.einsum("aij,aj->i", H[active, own:, :own], Py[active])
    left[:own], v[:own] = (D[:, None] * S[active]).sum(0), (D * Py[active]).sum(0)
    left = (left + left.T) / 2.0
    Q = left + np.diag(T)
    C0 = np.asarray(np.linalg.inv(Q), dtype=np.float64)
    theta_0: Floats = C0 @ v
    return _Solution(own, D, T, H, y, P, Pi, S, Py, total, left, v, Q, C0, theta_0, Py - S @ theta_0)


def _thetas(found: _Solution) -> Floats:
    """(K, q)."""
    theta = np.repeat(found.theta_0[None], len(found.delta), 0)
    theta[:, : found.own] += found.delta
    return theta


def _rescale(sums: Projected, spans: Sequence[slice], scales: Scales, found: _Solution) -> Scales:
    """One sweep of MacKay's fixed point for every scale, pseudo-counts included."""
    own, active = found.own, sums.active
    i, arms = np.arange(own), int(active.sum())
    theta, delta = _thetas(found)[active], found.delta[active]
    SC = found.S[active] @ found.C0
    covariance = found.Pi[active][:, i, i] + (SC * found.S[active]).sum(2)  # diagonals of cov(delta_a)
    determined, determined_0 = 1.0 - found.D * covariance, 1.0 - found.T * found.C0.diagonal()
    block_prior = (BLOCK_PRIOR[0], BLOCK_PRIOR[1] / arms)

    def scale(old: float, square: float, directions: float, prior: tuple[float, float], share: int = 1) -> float:
        moved = (square + prior[0] * prior[1] / share) / (max(directions, 0.0) + prior[0])
        return float(np.clip(moved, old / LARGEST_STEP, old * LARGEST_STEP))

    gram, moments = sums.gram[active], sums.moments[active]
    residual = (
        sums.squares[active] - 2.0 * (theta * moments).sum(1) + ((gram @ theta[:, :, None])[:, :, 0] * theta).sum(1)
    ).sum()
    H, S = found.H[active, :own], found.S[active]
    fitted = (  # sum_a tr(H_a cov(theta_a)): directions that the data determine
        (H[:, :, :own] * found.Pi[active]).sum()
        + ((2.0 * found.left - found.total) * found.C0).sum()
        + ((H - found.D[:, None] * S) * SC).sum()
    )
    count = sums.counts[active].sum()
    noise = (max(residual, 0.0) + NOISE_PSEUDO_OUTCOMES) / (max(count - fitted, 0.0) + NOISE_PSEUDO_OUTCOMES)
    return Scales(
        float(np.clip(noise, scales.noise / LARGEST_STEP, scales.noise * LARGEST_STEP)),
        scale(scales.level, (delta[:, 0] ** 2).sum(), determined[:, 0].sum(), ARM_PRIOR),
        np.array(
            [
                scale(scales.own[b], (delta[:, span] ** 2).sum(), determined[:, span].sum(), block_prior, len(spans))
                if own > 1
                else scales.own[b]
                for b, span in enumerate(spans)
            ]
        ),
        np.array(
            [
                scale(scales.shared[b], (found.theta_0[span] ** 2).sum(), determined_0[span].sum(), block_prior, len(spans))
                for b, span in enumerate(spans)
            ]
        ),
    )


def _log_evidence(sums: Projected, scales: Scales, found: _Solution) -> float:
    active, own = sums.active, found.own
    log_determinants = (
        np.linalg.slogdet(found.P[active])[1].sum()
        - active.sum() * np.log(found.D).sum()
        + np.linalg.slogdet(found.Q)[1]
        - np.log(found.T).sum()
    )
    squares = (
        sums.squares[active].sum() / scales.noise - (found.y[active, :own] * found.Py[active]).sum() - found.v @ found.theta_0
    )
    return float(-0.5 * (sums.counts[active].sum() * np.log(scales.noise) + log_determinants + squares))


@dataclass(frozen=True)
class Fit:
    """The posterior of one signal under one model, standardized.

    theta: (K, q).  fresh: (q,) and (k, k), an arm of which nothing is known.
    covariances: (K, k, k) of the first k entries, k = q in M1 and 1 in M0, without what outcomes since took from them:
    gains: per arm (n, k), of which sum g g' must be subtracted.  apart: rows of all gains.
    """

    scales: Scales
    evidence: float
    theta: Floats
    covariances: Floats
    fresh: tuple[Floats, Floats]
    gains: tuple[Floats, ...]
    apart: int = 0

    @staticmethod
    def of(sums: Projected, spans: Sequence[slice], scales: Scales, *, own: int) -> Fit:
        """After `SWEEPS` sweeps from these scales. own: entries in which an arm may differ."""
        for _ in range(SWEEPS):
            scales = _rescale(sums, spans, scales, _solve(sums, spans, scales, own))
        found = _solve(sums, spans, scales, own)
        A = np.eye(own, sums.gram.shape[1]) - found.S
        covariances = np.ascontiguousarray(found.Pi + A @ found.C0 @ np.swapaxes(A, 1, 2))
        fresh = found.theta_0, found.C0[:own, :own] + np.diag(1.0 / found.D)
        gains = (np.empty((0, own)),) * len(covariances)
        return Fit(scales, _log_evidence(sums, scales, found), _thetas(found), covariances, fresh, gains)

    @property
    def own(self) -> int:
        """K."""
        return len(self.fresh[1])

    def with_arms(self, count: int) -> Fit:
        """With fresh arms at the end, up to `count`."""
        more = count - len(self.theta)
        if more <= 0:
            return self
        return replace(
            self,
            theta=np.concatenate([self.theta, np.repeat(self.fresh[0][None], more, 0)]),
            covariances=np.concatenate([self.covariances, np.repeat(self.fresh[1][None], more, 0)]),
            gains=(*self.gains, *[np.empty((0, self.own))] * more),
        )

    def forget(self, arm: int) -> Fit:
        """With an arm of which nothing is known any more."""
        theta, covariances = self.theta.copy(), self.covariances.copy()
        theta[arm], covariances[arm] = self.fresh
        gains = (*self.gains[:arm], self.gains[arm][:0], *self.gains[arm + 1 :])
        return replace(self, theta=theta, covariances=covariances, gains=gains, apart=self.apart - len(self.gains[arm]))

    def step(self, arm: int, w: Floats, y: float) -> Fit:
        """One more standardized value of an arm: recursive least squares with theta_0 and the scales as they are."""
        theta = self.theta.copy()
        of_arm = theta[arm]
        innovation = y - float(of_arm.dot(w))
        if self.own == 1:
            level = float(self.covariances[arm, 0, 0])
            variance = self.scales.noise + level
            of_arm[0] += level * (innovation / variance)
            covariances = self.covariances.copy()
            covariances[arm] = level - level * (level / variance)
            return Fit(self.scales, self.evidence, theta, covariances, self.fresh, self.gains)
        before = self.gains[arm]
        gain = self.gain(arm, w)
        variance = self.scales.noise + float(gain.dot(w))
        of_arm += gain * (innovation / variance)
        gain *= 1.0 / math.sqrt(variance)
        gains = (*self.gains[:arm], np.concatenate((before, gain[None])), *self.gains[arm + 1 :])
        moved = Fit(self.scales, self.evidence, theta, self.covariances, self.fresh, gains, self.apart + 1)
        return moved if moved.apart < MOST_GAINS else moved._joined()

    def _joined(self) -> Fit:
        """The same with the gains in the covariances. A count of outcomes decides when, so that a restart changes no bit."""
        covariances = self.covariances.copy()
        for arm, gains in enumerate(self.gains):
            if len(gains):
                covariances[arm] -= gains.T @ gains
        empty = (np.empty((0, self.own)),) * len(self.gains)
        return Fit(self.scales, self.evidence, self.theta, covariances, self.fresh, empty)

    def gain(self, arm: int, w: Floats) -> Floats:
        """(k,) the covariance of an arm times w (q,)."""
        gains = self.gains[arm]
        found: Floats = self.covariances[arm].dot(w[: self.own])
        if len(gains):
            found -= gains.dot(w).dot(gains)
        return found

    def covariance(self, arm: int) -> Floats:
        """(k, k) of an arm."""
        gains = self.gains[arm]
        return np.asarray(self.covariances[arm] - gains.T @ gains)

    def correct(self, arm: int, w: Floats, by: float) -> Fit:
        """With one of the standardized values of an arm raised: theta is linear in it, and no covariance changes."""
        theta = self.theta.copy()
        theta[arm, : self.own] += self.gain(arm, w) * (by / self.scales.noise)
        return replace(self, theta=theta)

    def narrowing(self, arm: int, pending: Sequence[Floats]) -> Floats:
        """(n, k) further gains of an arm, as if the outcomes of its open decisions w (q,) had come: what they will bring is not
        needed for that. In the order given, so that equal sets give equal bits.
        """
        found = np.empty((len(pending), self.own))
        for i, w in enumerate(pending):
            gain = self.gain(arm, w) - found[:i].dot(w).dot(found[:i])
            found[i] = gain / math.sqrt(self.scales.noise + float(gain.dot(w)))
        return found

    @cached_property
    def _all_gains(self) -> tuple[Floats, NDArray[np.int64]]:
        """(n, k) of all arms, and (n,) of which arm each is."""
        return np.concatenate(self.gains), np.repeat(np.arange(len(self.gains)), [len(gains) for gains in self.gains])

    def variances(self, w: Floats) -> Floats:
        """(K,) of w (q,), k = q, rounding included: they may lie below 0."""
        arms, own = len(self.covariances), self.own
        found: Floats = product(self.covariances.reshape(arms * own, own), w).reshape(arms, own).dot(w)
        if self.apart:
            gains, owners = self._all_gains
            reach = gains.dot(w)
            reach *= reach
            found -= np.bincount(owners, reach, arms)
        return found


def pooled_moments(counts: Floats, moments: Floats, squares: Floats) -> tuple[float, float]:
    """Pooled mean and variance; 0 where it is below the digits of the squares."""
    count = counts.sum()
    if not count:
        return 0.0, 0.0
    mean, square = float(moments.sum() / count), float(squares.sum() / count)
    variance = square - mean * mean
    return mean, variance if variance > 1e-12 * square else 0.0


@dataclass(frozen=True)
class SignalPosterior:
    """One signal: estimates are mean + root y in its own units. fits: M1 and M0, one of them alone without a prompt, none where
    all values were alike (`mean` is that value; 0 where there is none).
    """

    count: int
    mean: float
    root: float
    fits: tuple[Fit, ...]
    trust: float | None

    def step(self, arm: int, w: Floats, value: float) -> SignalPosterior:
        """One more value of an arm."""
        if not self.fits:
            return self
        y = (value - self.mean) / self.root
        fits = tuple(fit.step(arm, w, y) for fit in self.fits)
        return SignalPosterior(self.count, self.mean, self.root, fits, self.trust)

    def correct(self, arm: int, w: Floats, by: float) -> SignalPosterior:
        """With one of the values of an arm raised."""
        return replace(self, fits=tuple(fit.correct(arm, w, by / self.root) for fit in self.fits))

    def forget(self, arm: int) -> SignalPosterior:
        """Nothing is known of this arm any more."""
        return replace(self, fits=tuple(fit.forget(arm) for fit in self.fits))

    def surprise(self, arm: int, w: Floats, value: float) -> float | None:
        """How far a value is from what M1 expected, in its standard deviations; None where nothing was expected."""
        if not self.fits:
            return None
        fit = self.fits[0]
        variance = fit.scales.noise + max(float(fit.gain(arm, w).dot(w[: fit.own])), 0.0)
        return float(((value - self.mean) / self.root - w @ fit.theta[arm]) / np.sqrt(variance))


@dataclass(frozen=True)
class Posterior:
    """What is known of every arm and signal after `count` outcomes, moved on by the outcomes since then.

    narrowings: a memo of `Fit.narrowing` by open decisions, (signal, model, arm) -> (gains, pending, narrowing). Whatever changes
    the covariance of an arm gives it another array of gains. The covariances are of all arms: kept here, a memo that is not asked
    for again would hold them.
    extended: one of `with_arms`.
    """

    count: int
    has_all: bool
    basis: Basis
    signals: tuple[SignalPosterior, ...]
    narrowings: dict[tuple[int, int, int], tuple[Floats, tuple[bytes, ...], Floats]] = field(
        default_factory=dict, compare=False, repr=False
    )
    extended: dict[int, Posterior] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def arms(self) -> int:
        """How many arms it knows."""
        return max((len(fit.theta) for signal in self.signals for fit in signal.fits), default=0)

    def with_arms(self, count: int) -> Posterior:
        """With fresh arms at the end, up to `count`."""
        if self.arms >= count:
            return self
        if count not in self.extended:
            signals = (replace(one, fits=tuple(fit.with_arms(count) for fit in one.fits)) for one in self.signals)
            self.extended[count] = Posterior(self.count, self.has_all, self.basis, tuple(signals))
        return self.extended[count]

    def step(self, arm: int, w: Floats, values: Sequence[float]) -> Posterior:
        """One more outcome. w: (q,).  values: (S,) as the sums have them, NaN = missing."""
        signals = tuple(
            one if math.isnan(value) else one.step(arm, w, value) for one, value in zip(self.signals, values, strict=True)
        )
        return Posterior(self.count, self.has_all, self.basis, signals, self.narrowings)

    def correct(self, arm: int, w: Floats, by: Sequence[float]) -> Posterior:
        """With values of one of the outcomes raised. w: (q,).  by: (S,), NaN = not."""
        signals = tuple(
            one if math.isnan(raised) else one.correct(arm, w, raised) for one, raised in zip(self.signals, by, strict=True)
        )
        return Posterior(self.count, self.has_all, self.basis, signals, self.narrowings)

    def forget(self, arm: int) -> Posterior:
        """Nothing is known of this arm any more."""
        signals = tuple(one.forget(arm) for one in self.signals)
        return Posterior(self.count, self.has_all, self.basis, signals, self.narrowings)

    def scores(
        self, signal: int, w: Floats, pending: Sequence[tuple[bytes, ...]], project: Project, allowed: NDArray[np.bool_] | None
    ) -> tuple[Floats, Floats]:
        """(K,) means and (K,) variances of a signal at w, in its units: both models, weighed by trust.

        pending: per arm the prompts of its open decisions.  project: of one of them, w.
        allowed: (K,), over which levels are compared; None = all.
        """
        one, arms = self.signals[signal], len(pending)
        if not one.fits:
            return np.full(arms, one.mean), np.zeros(arms)
        is_any = any(pending)
        mean, variance = self._scores(signal, 0, w, pending if is_any else (), project)
        if len(one.fits) == 2:
            assert one.trust is not None
            gap, level_variance = self._scores(signal, 1, w, pending if is_any else (), project)
            np.subtract(mean, gap, out=gap)
            # what all arms share is no difference of the models
            gap -= gap.sum() / arms if allowed is None else gap[allowed].mean()
            doubt = 1.0 - one.trust
            mean -= doubt * gap
            gap *= gap
            gap *= doubt
            variance += gap
            variance *= one.trust
            level_variance *= doubt
            variance += level_variance
        mean *= one.root
        mean += one.mean
        variance *= one.root**2
        return mean, variance

    def _scores(
        self, signal: int, model: int, w: Floats, pending: Sequence[tuple[bytes, ...]], project: Project
    ) -> tuple[Floats, Floats]:
        """pending: () = none of any arm."""
        fit = self.signals[signal].fits[model]
        means: Floats = fit.theta.dot(w)
        if fit.own == 1:  # w_own = 1: an open decision adds 1 / s2 to the precision of the level
            level: Floats = fit.covariances[:, 0, 0]
            if not pending:
                return means, level.copy()
            opened = np.array([len(prompts) for prompts in pending])
            return means, level * fit.scales.noise / (fit.scales.noise + opened * level)
        variances = fit.variances(w)
        for arm, prompts in enumerate(pending):
            if prompts:
                kept = self.narrowings.get((signal, model, arm))
                if kept is None or kept[0] is not fit.gains[arm] or kept[1] != prompts:
                    kept = fit.gains[arm], prompts, fit.narrowing(arm, [project(x) for x in prompts[:MOST_PENDING]])
                    self.narrowings[signal, model, arm] = kept
                reach = kept[2].dot(w)
                variances[arm] -= reach.dot(reach)
        return means, np.maximum(variances, 0.0, out=variances)


@dataclass(frozen=True)
class Preparation:
    """The sums at the outcome count at which a posterior is due. has_all: every active arm has an outcome; scales that were set
    before that do not carry over to the time after it.
    """

    count: int
    arms: tuple[EvidenceArm, ...]
    active: tuple[bool, ...]
    has_all: bool


def prepare(due: Preparation, before: Posterior | None, features: EvidenceFeatures, *, signals: int) -> Posterior:
    """The posterior of these sums. before: the one prepared before it, whose scales are where the sweeps start."""
    active = [arm for arm, counts in zip(due.arms, due.active, strict=True) if counts]
    basis = Basis.of(pooled([arm.grams[0] for arm in active], features), features.blocks, arms=len(active))
    of_all = np.stack([arm.grams[0].projected(basis, features) for arm in due.arms])
    found = []
    for k in range(signals):
        gram = of_all
        if any(int(arm.gram_of[k]) for arm in due.arms):
            own = (arm.gram(k).projected(basis, features) if int(arm.gram_of[k]) else None for arm in due.arms)
            gram = np.stack([shared if one is None else one for one, shared in zip(own, of_all, strict=True)])
        old = () if before is None or before.basis.spans != basis.spans else before.signals[k].fits
        found.append(_prepare_signal(k, due, basis, gram, scales=[fit.scales for fit in old]))
    return Posterior(due.count, due.has_all, basis, tuple(found))


def _prepare_signal(k: int, due: Preparation, basis: Basis, gram: Floats, *, scales: Sequence[Scales]) -> SignalPosterior:
    """The posterior of one signal. gram: (K, q, q) of its outcomes.  scales: where each model's sweeps start."""
    active = np.array(due.active)
    counts = np.array([arm.gram(k).count for arm in due.arms], dtype=np.float64)
    moments = np.stack([arm.moments.numpy()[k] for arm in due.arms])
    squares = np.array([float(arm.squares[k]) for arm in due.arms])
    mean, variance = pooled_moments(counts[active], moments[active, 0], squares[active])
    if variance == 0.0:
        return SignalPosterior(int(counts.sum()), mean, 1.0, (), None)
    root = float(np.sqrt(variance))
    sums = Projected(
        counts,
        gram,
        (basis.apply(moments.T).T - mean * gram[:, :, 0]) / root,
        (squares - 2.0 * mean * moments[:, 0] + counts * mean**2) / root**2,
        active,
    )
    spans = basis.spans
    owns = [basis.size, 1] if spans else [1]
    starts = scales or [Scales.start(blocks=len(spans), arms=int(active.sum()))] * len(owns)
    fits = tuple(Fit.of(sums, spans, start, own=own) for start, own in zip(starts, owns, strict=True))
    if len(fits) == 1:
        return SignalPosterior(int(counts.sum()), mean, root, fits, None)
    odds = math.exp(min(max(fits[1].evidence - fits[0].evidence, -500.0), 500.0))
    return SignalPosterior(int(counts.sum()), mean, root, fits, LEAST_TRUST + (1.0 - LEAST_TRUST) / (1.0 + odds))


# -- bytes (same build only): the posterior depends on the path of the log, so a snapshot keeps it beside the sums ----------


def to_tensors(posterior: Posterior) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The numbers, and a JSON object that says what they are."""
    tensors: dict[str, Floats] = {}
    basis = posterior.basis
    for i, (directions, center) in enumerate(zip(basis.directions, basis.centers, strict=True)):
        tensors[f"directions.{i}"], tensors[f"centers.{i}"] = directions, center
    signals = []
    for k, one in enumerate(posterior.signals):
        fits = []
        for m, fit in enumerate(one.fits):
            name = f"{k}.{m}."
            tensors[name + "theta"], tensors[name + "covariances"] = fit.theta, fit.covariances
            tensors[name + "gains"] = np.concatenate(fit.gains)
            tensors[name + "gains.of"] = np.array([len(gains) for gains in fit.gains])
            tensors[name + "fresh.theta"], tensors[name + "fresh.covariance"] = fit.fresh
            tensors[name + "own"], tensors[name + "shared"] = fit.scales.own, fit.scales.shared
            fits.append([fit.scales.noise.hex(), fit.scales.level.hex(), fit.evidence.hex()])
        trust = None if one.trust is None else one.trust.hex()
        signals.append({"count": one.count, "mean": one.mean.hex(), "root": one.root.hex(), "trust": trust, "fits": fits})
    about = {
        "count": posterior.count,
        "has_all": posterior.has_all,
        "blocks": [[b.start, b.stop] for b in basis.blocks],
        "signals": signals,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}, about


def from_tensors(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> Posterior:
    """What `to_tensors` gave."""
    numbers = {name: value.numpy() for name, value in tensors.items()}
    blocks = tuple(slice(start, stop) for start, stop in about["blocks"])
    basis = Basis(
        blocks,
        tuple(numbers[f"directions.{i}"] for i in range(len(blocks))),
        tuple(numbers[f"centers.{i}"] for i in range(len(blocks))),
    )
    signals = []
    for k, one in enumerate(about["signals"]):
        fits = []
        for m, (noise, level, evidence) in enumerate(one["fits"]):
            name = f"{k}.{m}."
            scales = Scales(float.fromhex(noise), float.fromhex(level), numbers[name + "own"], numbers[name + "shared"])
            fresh = numbers[name + "fresh.theta"], numbers[name + "fresh.covariance"]
            covariances, gains = numbers[name + "covariances"], numbers[name + "gains"]
            ends = np.cumsum(numbers[name + "gains.of"])
            of_arms = tuple(part.copy() for part in np.split(gains, ends[:-1]))
            fits.append(Fit(scales, float.fromhex(evidence), numbers[name + "theta"], covariances, fresh, of_arms, len(gains)))
        trust = None if one["trust"] is None else float.fromhex(one["trust"])
        mean, root = float.fromhex(one["mean"]), float.fromhex(one["root"])
        signals.append(SignalPosterior(one["count"], mean, root, tuple(fits), trust))
    return Posterior(about["count"], about["has_all"], basis, tuple(signals))
