"""Histories of what an arm has served, for DAK-UCB: they label the next answer, and report how diverse the answers are.

    row [t, x] or [t, x, y]:  prompt, output, reference of the same prompt
    learn(arm, rows, against) --> labels against each history *before* these rows, and the arm with them in its history
    scores(arms)              --> diversity of what these arms served together

    ExactHistory   keeps the last `max_samples` rows     exact labels; time and memory grow to a bound
    SummedHistory  keeps sums of random features         error 1/sqrt(D), see `label_error`; time and memory constant

Labels are frozen when they are made (DAK-UCB, Proposition 1): the history of an arm grows later, the label stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bandits.diversity.statistics import DiversityArm
from bandits.functional import diversity, kernels
from bandits.functional import joint_diversity as joint
from bandits.functional.growing import Rows

REPORT_ROWS = 512
"""Exact scores are of at most so many rows, the newest: spectra cost O(rows^3)."""
SPREAD_FREQUENCIES = 64
"""Frequencies behind the Vendi scores of order 1 of summed histories; the other scores use all D. These come out low, the more so
the more diverse the outputs: by 15 % (conditional: 27 %) where the exact score is 18 (16), and never above 128. Seen with 400
outputs on a sphere in R^4; 128 frequencies would halve that for four times the memory.
"""

JOINT, PROMPT, OUTPUT, DISTANCE, WEIGHT = range(5)
"""The sums of a summed history, of features for k_T^2 k_X^2, k_T^2, k_X^2; for JKD also Phi(t, x) - Phi(t, y), and k_T."""


def _kernel(a: Tensor, b: Tensor, *, bandwidth: float) -> Tensor:
    """(n, m) Gaussian kernel. Labels are part of the statistic, so this form of the distance, and its rounding, is for ever: far
    from the origin (see `kernels.FAR`) it loses digits that `kernels.gaussian` keeps.
    """
    return kernels.of_squares(kernels.squared_distances(a, b), bandwidth=bandwidth)


Scores = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class History:
    """Base of the histories: the kernels by which answers are compared.

    dim: d.  output_dim: e.  normalize: divide labels by the prompt kernel's sum, not by n.
    """

    diversity: Literal["rke", "jkd"]
    dim: int
    output_dim: int
    prompt_bandwidth: float
    output_bandwidth: float
    normalize: bool

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.dim + self.output_dim * (2 if self.diversity == "jkd" else 1)

    def rows(self, t: Tensor, outputs: Tensor, references: Tensor) -> Tensor:
        """(s, w) rows of one prompt (d,), s outputs (s, e) and, for JKD, references (s, e) or (1, e)."""
        parts = [t.expand(len(outputs), -1), outputs.to(torch.float64)]
        if self.diversity == "jkd":
            parts.append(references.to(torch.float64).expand(len(outputs), -1))
        return torch.cat(parts, dim=1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, d) prompts, (n, e) outputs, (n, e) or (n, 0) references."""
        return rows[:, : self.dim], rows[:, self.dim : self.dim + self.output_dim], rows[:, self.dim + self.output_dim :]


@dataclass(frozen=True, kw_only=True)
class ExactHistory(History):
    """The last rows that an arm served.

    At `max_samples` the oldest quarter goes first, so that rows are copied once per quarter: the history
    holds between 3/4 and all of the last `max_samples`, and a label is the mean over those.
    """

    max_samples: int

    def init(self) -> tuple[Tensor, Tensor]:
        """`served` and `spread` of an arm that served nothing."""
        return torch.zeros((0, self.width), dtype=torch.float64), torch.zeros((0, 0, 0), dtype=torch.float64)

    def update(self, arm: DiversityArm, rows: Tensor, *, against: Sequence[DiversityArm]) -> tuple[Tensor, DiversityArm]:
        """Labels (len(against),) of one answer, and the arm with its rows appended."""
        labels = torch.tensor([self.label(rows, other.served) for other in against], dtype=torch.float64)
        kept = Rows(arm.served) if arm.rows is None else arm.rows
        if len(arm.served) + len(rows) > self.max_samples:
            keep = max(0, self.max_samples - max(1, self.max_samples // 4, len(rows)))
            kept = Rows(arm.served[len(arm.served) - keep :])
        for row in rows[-self.max_samples :]:
            kept = kept.append(row)
        return labels, replace(arm, outputs=arm.outputs + len(rows), served=kept.tensor, rows=kept)

    def label(self, rows: Tensor, history: Tensor) -> float:
        """The label of one answer, rows (s, w), against a history (n, w)."""
        t, x, y = self.split(rows)
        t_old, x_old, y_old = self.split(history)
        prompt, across = self.k_prompt(t[:1], t_old)[0], self.k_output(x, x_old)
        if self.diversity == "rke":
            return joint.inverse_joint_rke_label(prompt, across, normalize=self.normalize)
        return joint.joint_kernel_distance_label(
            prompt,
            across,
            self.k_output(y, y_old),
            self.k_output(x, y_old),
            self.k_output(y, x_old),
            normalize=self.normalize,
        )

    def k_prompt(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, m) kernel of prompts."""
        return _kernel(a, b, bandwidth=self.prompt_bandwidth)

    def k_output(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, m) kernel of outputs."""
        return _kernel(a, b, bandwidth=self.output_bandwidth)

    def scores(self, arms: Sequence[DiversityArm]) -> Scores:
        """Scores of the newest rows of all these arms, each arm with its share of what was served, `REPORT_ROWS` in all."""
        total = sum(arm.outputs for arm in arms)
        take = [arm.outputs if total <= REPORT_ROWS else REPORT_ROWS * arm.outputs // total for arm in arms]
        rows = torch.cat([arm.served[max(0, len(arm.served) - n) :] for arm, n in zip(arms, take, strict=True)])
        if not len(rows):
            return _unknown(self.diversity)
        t, x, y = self.split(rows)
        prompts, outputs = self.k_prompt(t, t), self.k_output(x, x)
        scores = {
            "outputs": total,
            "rows": len(rows),
            "rke": diversity.rke(outputs),
            "inverse_joint_rke": joint.inverse_joint_rke(prompts, outputs),
            "conditional_rke": joint.conditional_rke(prompts, outputs),
            "vendi": diversity.vendi(diversity.gram_spectrum(outputs)),
            "conditional_vendi": joint.conditional_vendi(
                diversity.gram_spectrum(prompts * outputs), diversity.gram_spectrum(prompts)
            ),
        }
        if self.diversity == "jkd":
            scores["joint_kernel_distance"] = joint.joint_kernel_distance(
                prompts, outputs, self.k_output(y, y), self.k_output(x, y)
            )
        return scores


@dataclass(frozen=True, kw_only=True)
class SummedHistory(History):
    """Sums of random features of everything ever served. w: (D, d + e) standard normal frequencies."""

    w: Tensor

    @cached_property
    def _narrow(self) -> int:
        return min(SPREAD_FREQUENCIES, len(self.w))

    def init(self) -> tuple[Tensor, Tensor]:
        """`served` and `spread` of an arm that served nothing."""
        sums, side = 5 if self.diversity == "jkd" else 3, 2 * self._narrow
        return torch.zeros((sums, 2 * len(self.w)), dtype=torch.float64), torch.zeros((3, side, side), dtype=torch.float64)

    def update(self, arm: DiversityArm, rows: Tensor, *, against: Sequence[DiversityArm]) -> tuple[Tensor, DiversityArm]:
        """Labels (len(against),) of one answer, and the arm with its features added."""
        features, narrow = self.features(rows)
        total = features.sum(1)
        labels = torch.tensor([self.label(total / len(rows), other) for other in against], dtype=torch.float64)
        grown = replace(
            arm,
            outputs=arm.outputs + len(rows),
            served=arm.served + total,
            spread=torch.baddbmm(arm.spread, narrow.transpose(1, 2), narrow),
        )
        return labels, grown

    def features(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of one answer, rows (s, w): (sums, s, 2D) what is summed, and (3, s, 2R) for the spectra of joint, prompts, outputs."""
        t, x, y = self.split(rows)
        w_prompt, w_output = self.w[:, : self.dim], self.w[:, self.dim :]
        prompt = joint.phases(t[:1], w_prompt, bandwidth=self.prompt_bandwidth).expand(len(rows), -1)
        output = joint.phases(x, w_output, bandwidth=self.output_bandwidth)
        phases = torch.stack([prompt + output, prompt, output])
        features = joint.phase_features(joint.SQUARED * phases)
        narrow = joint.phase_features(phases[..., : self._narrow])
        if self.diversity == "jkd":
            reference = joint.phases(y, w_output, bandwidth=self.output_bandwidth)
            distance = joint.phase_features(phases[JOINT]) - joint.phase_features(prompt + reference)
            features = torch.cat([features, distance[None], joint.phase_features(prompt)[None]])
        return features, narrow

    def label(self, features: Tensor, other: DiversityArm) -> float:
        """The label of one answer, mean features (sums, 2D), against the history of an arm.

        A normalized label is a ratio of two sums, each known within about n / sqrt(2D). The lower one is not trusted below that,
        so that prompts unlike any served before get labels near 0, as with an empty history; and the ratio is cut to the range
        of the exact one.
        """
        if not other.outputs:
            return 0.0
        rke = self.diversity == "rke"
        value = float(features[JOINT if rke else DISTANCE] @ other.served[JOINT if rke else DISTANCE])
        if not self.normalize:
            return value / other.outputs
        weight = float(features[PROMPT if rke else WEIGHT] @ other.served[PROMPT if rke else WEIGHT])
        ratio = value / max(weight, other.outputs / math.sqrt(2 * len(self.w)))
        return min(max(ratio, 0.0), 1.0) if rke else min(max(ratio, -2.0), 2.0)

    def scores(self, arms: Sequence[DiversityArm]) -> Scores:
        """Scores of everything that these arms served: sums of several arms add up."""
        total = sum(arm.outputs for arm in arms)
        if not total:
            return _unknown(self.diversity)
        means = torch.stack([arm.served for arm in arms]).sum(0) / total
        energies = means.square().sum(1).tolist()
        spectra = [diversity.spectrum(moment) for moment in torch.stack([arm.spread for arm in arms]).sum(0)]
        scores = {
            "outputs": total,
            "rows": total,
            "rke": 1.0 / energies[OUTPUT],
            "inverse_joint_rke": energies[JOINT],
            "conditional_rke": energies[PROMPT] / energies[JOINT],
            "vendi": diversity.vendi(spectra[OUTPUT]),
            "conditional_vendi": joint.conditional_vendi(spectra[JOINT], spectra[PROMPT]),
        }
        if self.diversity == "jkd":
            scores["joint_kernel_distance"] = energies[DISTANCE]
        return scores


def _unknown(kind: str) -> Scores:
    names = ["rke", "inverse_joint_rke", "conditional_rke", "vendi", "conditional_vendi"]
    return {"outputs": 0, "rows": 0, **dict.fromkeys(names + (["joint_kernel_distance"] if kind == "jkd" else []))}
