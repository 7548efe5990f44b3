"""Textbook learners: the papers' rules computed as their released code computes them, written afresh for
`bench.comparison.reference`.

    RefitKernel         PAK-UCB      every round and arm: kernel matrix of all n samples, factor, solve           O(n^2 d + n^3)
    RefitDiversity      DAK-UCB      every round and arm: three such regressions (reward, penalty, width)         O(n^2 d + n^3)
    SolvedMixture       Mixture-UCB  kernel sums against all N samples; weights from a general solver             O(N d) + solver
    GeneralRoot         FD-UCB       running moments; root of the non-symmetric product S_g S_r by `sqrtm`        O(e^3), dear

They follow the formulas of our policies' pages, without the defects of the released code, so that both sides choose the same
arms. Where a textbook has a choice, the cheaper one is taken: one factor for both right-hand sides of a regression, kernel
matrices by matrix products, the spectral norm by eigenvalues. Like ours they are float64 on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Solver = Callable[[Floats, Floats], Floats]
"""(m, m) Q and (m,) c -> the (m,) weights of the simplex with the least a'Qa + c'a."""


class Kept:
    """Rows that are appended to an array with room to grow, so that a textbook does not pay for Python lists."""

    def __init__(self, rows: Floats) -> None:
        self._buffer, self._filled = rows.copy(), len(rows)

    def __len__(self) -> int:
        return self._filled

    @property
    def rows(self) -> Floats:
        """(n, ...) a view."""
        return self._buffer[: self._filled]

    def append(self, row: Floats | float) -> None:
        """One more row."""
        if self._filled == len(self._buffer):
            room = np.zeros((max(16, self._filled), *self._buffer.shape[1:]))
            self._buffer = np.concatenate([self._buffer, room])
        self._buffer[self._filled] = row
        self._filled += 1


def gaussian(x: Floats, y: Floats, bandwidth: float) -> Floats:
    """(n, m) exp(-|x - y|^2 / (2 bandwidth^2)) of (n, d) and (m, d)."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2.0 * (x @ y.T)
    return np.asarray(np.exp(np.maximum(squares, 0.0) / (-2.0 * bandwidth**2)))


def regression(
    x: Floats, targets: Floats, at: Floats, *, bandwidth: float, ridge: float, general: bool = False
) -> tuple[float, float]:
    """Mean and width at one prompt (d,) of a kernel ridge regression fitted from scratch to x (n, d) and targets (n,).

    general: by the solver for any square matrix, twice the work of the Cholesky factor.
    """
    gram = gaussian(x, x, bandwidth) + ridge * np.eye(len(x))
    k = gaussian(x, at[None], bandwidth)[:, 0]
    right = np.stack([targets, k], axis=1)
    if general:
        solved = np.linalg.solve(gram, right)
    else:
        solved = scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True), right)
    return float(k @ solved[:, 0]), math.sqrt(max(1.0 - float(k @ solved[:, 1]), 0.0) / ridge)


@dataclass
class RefitKernel:
    """PAK-UCB with an exact kernel, refitted in every round: O(t^3 / m^2). Per arm prompts (n, d) and rewards (n,)."""

    prompts: list[Kept]
    rewards: list[Kept]
    bandwidth: float
    ridge: float
    exploration: float
    general: bool = False

    def choose(self, x: Floats) -> int:
        """The arm of the highest mean + exploration * width; an arm without samples first."""
        scores = [math.inf] * len(self.prompts)
        for arm, rows in enumerate(self.prompts):
            if len(rows):
                targets = self.rewards[arm].rows
                mean, width = regression(rows.rows, targets, x, bandwidth=self.bandwidth, ridge=self.ridge, general=self.general)
                scores[arm] = mean + self.exploration * width
        return int(np.argmax(scores))

    def learn(self, arm: int, x: Floats, reward: float) -> None:
        """Keep the pair."""
        self.prompts[arm].append(x)
        self.rewards[arm].append(reward)


@dataclass
class RefitDiversity:
    """DAK-UCB with I-JRKE labels, refitted in every round. Labels are frozen when made; outputs (n, e) per arm are kept for them.

    Three regressions per arm, each fitted by itself as a library's class does: reward, penalty and width.
    """

    prompts: list[Kept]
    rewards: list[Kept]
    labels: list[Kept]
    outputs: list[Kept]
    bandwidth: float
    output_bandwidth: float
    ridge: float
    exploration: float
    diversity_exploration: float
    diversity_weight: float

    def choose(self, x: Floats) -> int:
        """The arm of the highest mean + eta width + lambda (eta_D width - penalty)."""
        scores = [math.inf] * len(self.prompts)
        for arm, rows in enumerate(self.prompts):
            if not len(rows):
                continue
            kept = rows.rows
            settings: dict[str, Any] = {"bandwidth": self.bandwidth, "ridge": self.ridge}
            mean = regression(kept, self.rewards[arm].rows, x, **settings)[0]
            penalty = regression(kept, self.labels[arm].rows, x, **settings)[0]
            width = regression(kept, np.zeros(len(rows)), x, **settings)[1]
            optimism = self.diversity_weight * (self.diversity_exploration * width - penalty)
            scores[arm] = mean + self.exploration * width + optimism
        return int(np.argmax(scores))

    def learn(self, arm: int, x: Floats, reward: float, output: Floats) -> None:
        """Label the answer against what the arm served before, from scratch, then keep it."""
        label = 0.0
        if len(self.outputs[arm]):
            prompts = gaussian(self.prompts[arm].rows, x[None], self.bandwidth)
            outputs = gaussian(self.outputs[arm].rows, output[None], self.output_bandwidth)
            label = float(np.mean(prompts**2 * outputs**2))
        self.prompts[arm].append(x)
        self.rewards[arm].append(reward)
        self.labels[arm].append(label)
        self.outputs[arm].append(output)


# -- mixtures --------------------------------------------------------------------------------------------------------------


def by_slsqp(quadratic: Floats, linear: Floats) -> Floats:
    """SciPy's general solver for smooth constrained problems, with the gradient given."""
    m = len(linear)
    found = scipy.optimize.minimize(
        lambda a: float(a @ quadratic @ a + linear @ a),
        np.full(m, 1.0 / m),
        jac=lambda a: 2.0 * quadratic @ a + linear,
        bounds=[(0.0, 1.0)] * m,
        constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1.0, "jac": lambda a: np.ones(m)}],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 200},
    )
    return tidy(np.asarray(found.x))


def by_modelling_layer(cvxpy: Any) -> Solver:
    """A problem in a modelling language, built and handed to its quadratic solver in every round, as the released code does."""

    def solve(quadratic: Floats, linear: Floats) -> Floats:
        weights = cvxpy.Variable(len(linear))
        loss = cvxpy.quad_form(weights, cvxpy.psd_wrap(quadratic)) + linear @ weights
        problem = cvxpy.Problem(cvxpy.Minimize(loss), [weights >= 0, cvxpy.sum(weights) == 1])
        problem.solve(solver="OSQP", eps_abs=1e-8, eps_rel=1e-8)
        return tidy(np.asarray(weights.value))

    return solve


def tidy(weights: Floats) -> Floats:
    """Cut at 0, divided by the sum."""
    cut = np.maximum(weights, 0.0)
    return np.asarray(cut / cut.sum())


@dataclass
class SolvedMixture:
    """Mixture-UCB-CAB for RKE with an exact kernel: sums of k^2 over pairs, weights by a general solver, a draw by inverse CDF.

    samples: per arm (n, e) rows.  sums: (m, m) sum of k^2, pairs of a sample with itself once.  delta_l: eq. (7) with beta 1.
    """

    samples: list[Kept]
    sums: Floats
    bandwidth: float
    delta_l: float
    solver: Solver

    @classmethod
    def of(cls, samples: Sequence[Floats], *, bandwidth: float, delta_l: float, solver: Solver) -> SolvedMixture:
        """With these samples (n, e) per arm seen already."""
        sums = [[float((gaussian(a, b, bandwidth) ** 2).sum()) for b in samples] for a in samples]
        return cls([Kept(rows) for rows in samples], np.array(sums), bandwidth, delta_l, solver)

    def weights(self) -> Floats:
        """(m,) the argmin of the loss minus the width."""
        n = np.array([float(len(rows)) for rows in self.samples])
        width = self.delta_l * np.sqrt(math.log(n.sum()) / (2.0 * n))
        return self.solver(self.sums / np.outer(n, n), -width)

    def choose(self, uniform: float) -> int:
        """The arm under this number in [0, 1)."""
        return int(np.searchsorted(np.cumsum(self.weights()), uniform, side="right"))

    def learn(self, arm: int, output: Floats) -> None:
        """Compare one sample with all others."""
        for other, rows in enumerate(self.samples):
            if not len(rows):
                continue
            total = float((gaussian(rows.rows, output[None], self.bandwidth) ** 2).sum())
            self.sums[arm, other] += total
            self.sums[other, arm] += total  # own samples are met twice here, as each pair has two orders
        self.sums[arm, arm] += 1.0
        self.samples[arm].append(output)


# -- Frechet distance ------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """Mean (e,) and covariance (e, e), divided by n - 1, of n samples, one at a time."""

    mean: Floats
    covariance: Floats
    n: int = 0

    def learn(self, x: Floats) -> None:
        """O(e^2)."""
        self.n += 1
        gap = x - self.mean
        if self.n > 1:
            self.covariance *= (self.n - 2) / (self.n - 1)
            self.covariance += np.outer(gap, gap) / self.n
        self.mean = self.mean + gap / self.n


@dataclass
class GeneralRoot:
    """FD-UCB with the released radius (delta .05, kappa 1); an arm is scored after its own samples came."""

    arms: list[Running]
    reference_mean: Floats
    reference_covariance: Floats
    scores: list[float] = field(default_factory=list)
    root_trace: float = 0.0

    def __post_init__(self) -> None:
        eigenvalues = np.linalg.eigvalsh(self.reference_covariance)
        self.root_trace = float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())
        self.scores = self.scores or [-math.inf] * len(self.arms)

    def choose(self) -> int:
        """The arm of the lowest distance - radius."""
        return int(np.argmin(self.scores))

    def learn(self, arm: int, rows: Floats) -> None:
        """Add samples (n, e), then score the arm again."""
        for row in rows:
            self.arms[arm].learn(row)
        distance, radius = self.measure(arm)
        self.scores[arm] = distance - radius

    def measure(self, arm: int) -> tuple[float, float]:
        """The squared Frechet distance and the released radius."""
        here, log = self.arms[arm], math.log(1.0 / 0.05)
        product = here.covariance @ self.reference_covariance
        root = scipy.linalg.sqrtm(product)
        gap = float(np.linalg.norm(here.mean - self.reference_mean))
        trace = float(np.trace(here.covariance))
        distance = gap**2 + trace + float(np.trace(self.reference_covariance)) - 2.0 * float(np.trace(root).real)
        top = float(np.linalg.eigvalsh(here.covariance)[-1])
        mean = math.sqrt((math.sqrt(float((here.covariance**2).sum()) * log) + top * log) / here.n)
        spread = top * math.sqrt((trace / top + log) / here.n) + mean**2
        radius = mean * (mean + gap) + self.root_trace * math.sqrt(spread) + trace * math.sqrt(log / here.n) + top * log / here.n
        return distance, radius
