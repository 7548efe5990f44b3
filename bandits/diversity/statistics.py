"""The statistic of DAK-UCB's arms: one regression factor with several targets, and the history that labels are made from.

prompt, reward --> RidgeArm / KernelArm                                   the very numbers of PAK-UCB
prompt, labels --> sums beside them; coefficients = (A + ridge I)^-1 sums  the same factor, one column per label
prompt, output --> history: rows, or sums of random features              see `history`
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandits.functional.growing import Rows
from bandits.regression.kernel import KernelArm
from bandits.regression.model import Regression
from bandits.regression.ridge import RidgeArm
from bandits.types import LAYOUT, cached_field, layout_field


@dataclass(frozen=True)
class DiversityArm:
    """The statistic of an arm: its rewards and what it served.

    Letters: q labels, s sums, m rows, w their length, R frequencies of the spread.

    `pulls`, `design`, `rewards` and `held` are those of `RidgeArm` (random features) or `KernelArm` (exact kernel), which
    `fitted` puts together again.
    """

    pulls: int
    design: Tensor  # (p, p) sum z z' of all but the held ones      exact kernel: (n, d) the prompts
    rewards: Tensor  # (p,) sum (r - r0) z     exact kernel: (n,) r - r0
    labels: Tensor  # (p, q) sum psi z         exact kernel: (n, q) psi
    outputs: int  # outputs served, the forgotten ones too
    served: Tensor  # (m, w) rows [t, x] or [t, x, y]      random-feature labels: (s, 2D) sums
    spread: Tensor  # (3, 2R, 2R) second moments           exact labels: (0, 0, 0)
    held: tuple[Tensor, ...] = layout_field(since=2)  # z (p,) of the last ones      exact kernel: none
    regression: RidgeArm | KernelArm | None = cached_field()
    coefficients: Tensor | None = cached_field()  # (p, q), exact kernel (n, q): see `solved`
    rows: Rows | None = cached_field()  # `served` with room to grow

    @staticmethod
    def init(using: Regression, *, served: Tensor, spread: Tensor) -> DiversityArm:
        """Nothing seen, with an empty history."""
        design, rewards, _ = _parts(using.init())
        return DiversityArm(0, design, rewards, design.new_zeros((len(rewards), 0)), 0, served, spread)

    def fitted(self, using: Regression) -> RidgeArm | KernelArm:
        """The regression of the reward, with its derived values."""
        if self.regression is None:
            if using.kernel is None:
                found: RidgeArm | KernelArm = RidgeArm(self.pulls, self.design, self.rewards, self.held)
            else:
                found = KernelArm(self.pulls, self.design, self.rewards)
            object.__setattr__(self, "regression", found)  # a memo, not a change
        assert self.regression is not None
        return self.regression

    def update(
        self,
        x: Tensor,
        target: float,
        labels: Tensor,
        *,
        using: Regression,
        was_pending: bool,
        offset: int = 0,
        layout: int = LAYOUT,
    ) -> DiversityArm:
        """One more prompt x (d,), its reward and its labels (q,). q may grow with the arms: a later arm had no history
        to compare with, so earlier labels against it are 0, as every label against an empty history is.
        """
        learned = using.update(self.fitted(using), x, target, was_pending=was_pending, offset=offset, layout=layout)
        design, rewards, held = _parts(learned)
        known = _widen(self.labels, len(labels))
        coefficients = None
        if isinstance(learned, RidgeArm):
            known = torch.addr(known, using.feature_map(x), labels)
        else:
            known = torch.cat([known, labels[None]])[-len(rewards) :]  # what the regression forgets, labels forget
            coefficients = self._extended(labels, learned, using)
        return replace(
            self,
            pulls=learned.pulls,
            design=design,
            rewards=rewards,
            labels=known,
            held=held,
            regression=learned,
            coefficients=coefficients,
        )

    def correct(self, x: Tensor, old: float, new: float, *, using: Regression, learned: int) -> DiversityArm:
        """With the target `old` of a prompt x (d,) replaced. learned: the offset of that observation."""
        regression = using.correct(self.fitted(using), x, old, new, learned=learned)
        return replace(self, rewards=_parts(regression)[1], regression=regression)

    def _extended(self, labels: Tensor, learned: KernelArm, using: Regression) -> Tensor | None:
        """`solved` with one more row, O(n q), where the factor is the old one with one more row; None where it forgot."""
        if self.coefficients is None or len(learned.targets) != len(self.rewards) + 1:
            return None
        assert using.kernel is not None
        row, pivot = learned.posterior(using.kernel, using.ridge).factor.last
        before = _widen(self.coefficients, len(labels))
        return torch.cat([before, ((labels - row @ before) / pivot)[None]])

    def add_pending(self, x: Tensor, *, using: Regression) -> DiversityArm:
        """Shrink the width, which reward and labels share, for one pending prompt."""
        return replace(self, regression=using.add_pending(self.fitted(using), x))

    def remove_pending(self, x: Tensor, *, using: Regression) -> DiversityArm:
        """Undo one `add_pending`."""
        return replace(self, regression=using.remove_pending(self.fitted(using), x))

    def with_pending_of(self, other: DiversityArm, *, using: Regression) -> DiversityArm:
        """With the pending prompts of another arm."""
        return replace(self, regression=using.carry_pending(other.fitted(using), self.fitted(using)))

    def solved(self, using: Regression) -> Tensor:
        """(p, q) (A + ridge I)^-1 times the label sums: O(p^2 q), once per outcome, off the request path.

        Exact kernel: (n, q) L^-1 times the labels, for the factor L of K + ridge I; a row more per outcome.
        """
        if self.coefficients is None:
            arm = self.fitted(using)
            if isinstance(arm, RidgeArm):
                coefficients = arm.ridge(using.ridge).inverse.times(self.labels)
            else:
                assert using.kernel is not None
                coefficients = arm.posterior(using.kernel, using.ridge).factor.solve(self.labels)
            object.__setattr__(self, "coefficients", coefficients)  # a memo, not a change
        assert self.coefficients is not None
        return self.coefficients

    def expected(self, z: Tensor, *, using: Regression, columns: int) -> Tensor:
        """(B, columns) the labels expected of lifted prompts z (B, p); 0 before any observation."""
        arm, coefficients = self.fitted(using), self.solved(using)
        if isinstance(arm, RidgeArm):
            return _widen(z @ coefficients, columns)
        assert using.kernel is not None
        # the same whitened kernel as that of the mean and width of the reward
        whitened_kernel = arm.posterior(using.kernel, using.ridge).whiten(
            z, kernel=using.kernel
        )  # that of the reward's mean and width
        return _widen(whitened_kernel.T @ coefficients, columns)


def _widen(matrix: Tensor, columns: int) -> Tensor:
    """The matrix with columns of zeros appended."""
    missing = columns - matrix.shape[1]
    return torch.cat([matrix, matrix.new_zeros((len(matrix), missing))], dim=1) if missing else matrix


def _parts(arm: RidgeArm | KernelArm) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    return (arm.gram, arm.moment, arm.held) if isinstance(arm, RidgeArm) else (arm.features, arm.targets, ())


@dataclass(frozen=True)
class ReferencePairs:
    """Real outputs with the prompts that they answer."""

    prompts: Tensor  # (n, d)
    outputs: Tensor  # (n, e)

    @staticmethod
    def init(dim: int, output_dim: int) -> ReferencePairs:
        """None posted."""
        return ReferencePairs(torch.zeros((0, dim), dtype=torch.float64), torch.zeros((0, output_dim), dtype=torch.float64))

    def append(self, prompts: Tensor, outputs: Tensor, *, max_samples: int) -> ReferencePairs:
        """With more pairs; the oldest go beyond `max_samples`."""
        return ReferencePairs(
            torch.cat([self.prompts, prompts])[-max_samples:], torch.cat([self.outputs, outputs])[-max_samples:]
        )

    def nearest(self, prompt: Tensor) -> Tensor:
        """(1, e) the output of the posted prompt that is nearest to this one (d,); the first posted among equals.

        Why the nearest, and not the pairs as one sample of the joint distribution: an arm is not asked the prompts of the pairs.
        JKD against the whole sample then measures the difference between prompts, and an arm that answers
        dogs exactly like the references, and is asked for dogs alone, is charged for the cats. The output of (nearly) the same
        prompt keeps the label a difference of outputs: 0 for an arm that answers like the references, whatever it is asked,
        and exactly the paper's label where the prompt itself was posted. A kernel average over pairs would blur real outputs
        into one that no arm can match. The error left is how much real outputs differ between the two prompts.
        """
        distances = (self.prompts - prompt).square().sum(1)  # not the expanded form: equal prompts must be exactly equal
        return self.outputs[distances.argmin()][None]
