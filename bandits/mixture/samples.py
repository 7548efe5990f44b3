"""Hyperparameters, sample statistics and input checks of the mixture policies.

objective      kernel    kept per arm (mixture_arms.py)                         reference
rke            rbf       sum of random features, or the newest samples          none
               cosine    sum of outer products                                  none
rke+quality    the same, and the sum of qualities                               samples
kid            rbf       sum of random features, or the newest samples          the same of the reference
               cosine    sum of directions                                      the same of the reference
vendi          both      sum of outer products of features                      none
fid            none      sums about the first sample                            the same, or moments
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from bandits.errors import InvalidHyperparameter, InvalidObservation, ReferenceMissing
from bandits.functional import kernels, moments, quality
from bandits.hyperparameters import exploration_floor_field, hyper, normalize_field
from bandits.mixture.statistics import FrechetArm, FrechetReference, MixtureArm, Neighborhoods, SampleStatistic
from bandits.types import ArmState, Need, NoReference, Observation, Policy, State

Objective = Literal["rke", "kid", "fid", "vendi", "rke+quality"]

SPECTRAL_FREQUENCIES = 256
"""Most random frequencies behind a Vendi loss: a step costs O((2D)^3). The released code uses 256."""

REFERENCE_SAMPLES = 10_000
"""Most reference samples that are kept as such (quality terms, KID with an exact kernel): their pairs are compared once."""

LARGEST = 1e60
"""Outputs beyond this magnitude are refused, and directions of vectors below its inverse: fourth powers must stay numbers."""


class _Needs:
    """A descriptor: on an instance, what its hyperparameters need; on the class, what every configuration needs."""

    def __get__(self, policy: MixtureSamples | None, owner: type) -> frozenset[Need]:
        with_reference = policy is not None and policy.reference_kind != "none"
        return frozenset({"output", "reference"} if with_reference else {"output"})


@dataclass(frozen=True, kw_only=True)
class MixtureSamples(Policy):
    """Base of the mixture policies: hyperparameters, statistics and input checks."""

    needs: ClassVar[frozenset[Need]] = cast("frozenset[Need]", _Needs())
    reference_when: ClassVar[str] = "objective kid, fid or rke+quality: samples (or moments, for fid) before the first decision"
    reference_frozen: ClassVar[bool] = True  # qualities are summed against it as samples come

    objective: Objective = hyper("rke", "What makes the gathered samples good.")
    kernel: Literal["rbf", "cosine"] = hyper(
        "rbf",
        "rbf: k = exp(-|x-y|^2 / (2 bandwidth^2)); cosine: x.y / (|x| |y|), exact and without a bandwidth. rke squares it.",
        source="Mixture-UCB, released code (rbf); Mixture-Greedy, released code (cosine for Vendi)",
    )
    bandwidth: float | None = hyper(
        None,
        "sigma of the rbf kernel; no default: about the median distance of two outputs. Published: 5 to 40 for DINOv2 and CLIP.",
        above=0,
        unit="length of the (normalised) output",
        source="Mixture-UCB and Mixture-Greedy, released code",
    )
    random_features: int | None = hyper(
        2048,
        "Number D of random frequencies of the rbf kernel: memory independent of the rounds; null = exact kernel over the newest "
        f"`max_samples` per arm. Objective vendi uses the first {SPECTRAL_FREQUENCIES} at most.",
        at_least=1,
        at_most=8192,
        source="FKEA: 2,000 to 4,000",
    )
    max_samples: int = hyper(
        2000,
        "Exact kernel only: samples kept per arm; beyond it the oldest quarter is forgotten.",
        at_least=4,
        at_most=20_000,
        unit="samples",
    )
    normalize: bool = normalize_field(False, what="output")
    quality: Literal["none", "precision", "density"] = hyper(
        "none",
        "Quality of a sample against the reference, for rke+quality: precision is 0 or 1, density counts neighbourhoods.",
        source="Mixture-UCB, released code",
    )
    quality_weight: float = hyper(
        1.0,
        "lambda: what a unit of quality is worth against 1 / RKE.",
        at_least=0,
        source="Mixture-UCB, released code; README: 0.05",
    )
    neighbours: int = hyper(5, "k of the reference's k-nearest-neighbour radii.", at_least=1, source="Mixture-UCB, released code")
    initial_pulls: int = hyper(
        5,
        "Decisions per arm before the rule applies, least-pulled first; fid takes at least 5, vendi at least 2.",
        at_least=1,
        source="released code: 5; paper: 1",
    )
    exploration_floor: float = exploration_floor_field()

    def __post_init__(self) -> None:
        if str(self.quality) in ("recall", "coverage"):
            raise InvalidHyperparameter(
                "quality",
                f"{self.quality} cannot be a term of a mixture: it counts the reference points that all samples reach "
                "together, so it is no average over samples and not linear in the weights; use precision or density",
            )
        super().__post_init__()
        if self.objective != "fid" and self.kernel == "rbf" and self.bandwidth is None:
            raise InvalidHyperparameter(
                "bandwidth",
                "is needed by the rbf kernel: about the median distance of two outputs (5 to 40 for DINOv2 and CLIP vectors); or "
                "set kernel: cosine, which has none",
            )
        if (self.objective == "rke+quality") != (self.quality != "none"):
            raise InvalidHyperparameter("quality", "precision or density with objective rke+quality, and none with every other")
        if self.objective == "vendi" and self.kernel == "rbf" and self.random_features is None:
            raise InvalidHyperparameter(
                "random_features", "objective vendi has no exact rbf form; set a number, or kernel: cosine"
            )

    # -- what is kept --------------------------------------------------------------------------------------------------

    @property
    def reference_kind(self) -> Literal["none", "samples", "kernel", "moments"]:
        """What the objective needs of a reference."""
        if self.objective == "rke+quality":
            return "samples"
        return "kernel" if self.objective == "kid" else "moments" if self.objective == "fid" else "none"

    @property
    def squared(self) -> bool:
        """Whether the loss is about k^2: for a Gaussian the kernel of bandwidth sigma / sqrt 2."""
        return self.objective in ("rke", "rke+quality")

    @cached_property
    def frequencies(self) -> Tensor:
        """(D, e) random frequencies of the kernel that the loss is about; (0, e) where there are none."""
        count = 0 if self.kernel == "cosine" or self.objective == "fid" else self.random_features or 0
        if self.objective == "vendi":
            count = min(count, SPECTRAL_FREQUENCIES)
        return kernels.frequencies(seed=self.seed, count=count, dim=self.output_dim, bandwidth=self._sigma)

    @cached_property
    def fingerprint(self) -> str:
        return kernels.fingerprint(self.frequencies) if len(self.frequencies) else ""

    @property
    def _sigma(self) -> float:
        return (self.bandwidth or 1.0) / (math.sqrt(2.0) if self.squared else 1.0)

    @cached_property
    def form(self) -> SampleStatistic:
        """How an arm keeps its samples (all objectives but fid)."""
        if self.kernel == "cosine":
            return SampleStatistic(keeps="total" if self.objective == "kid" else "second", feature_map=unit, size=self.output_dim)
        if self.random_features is None:
            return SampleStatistic(
                keeps="outputs", feature_map=lambda x: x, size=self.output_dim, kernel=self._gaussian, window=self.max_samples
            )
        return SampleStatistic(
            keeps="second" if self.objective == "vendi" else "total",
            feature_map=lambda x: kernels.random_features(x, self.frequencies),
            size=2 * len(self.frequencies),
        )

    def _gaussian(self, x: Tensor, y: Tensor) -> Tensor:
        return kernels.gaussian(x, y, bandwidth=self._sigma)

    def gram(self, x: Tensor) -> Tensor:
        """(n, n) the exact rbf kernel itself, not its square, of outputs (n, e)."""
        return kernels.gaussian(x, x, bandwidth=self.bandwidth or 1.0)

    def samples(self, output: Tensor) -> list[Tensor]:
        """Samples (e,) of outputs (n, e) as they are folded: one by one, as a product over a batch would round by its size."""
        rows = [row.to(torch.float64, copy=True) for row in output]
        return [unit(row) for row in rows] if self.normalize else rows

    # -- the statistic -------------------------------------------------------------------------------------------------

    def init(self) -> ArmState:
        return FrechetArm.init(self.output_dim) if self.objective == "fid" else self.form.init()

    def update(self, state: State, seen: Observation) -> ArmState:
        arm, samples = state.arms[seen.arm], self.samples(seen.output)
        if isinstance(arm, FrechetArm):
            return arm.update(samples)
        return self.form.update(arm, samples, quality=self._quality(samples, state.reference))

    def _quality(self, samples: list[Tensor], reference: ArmState) -> float:
        """Sum of the samples' qualities. They are whole numbers (over k), so the order of adding them does not show."""
        if not isinstance(reference, Neighborhoods):
            return 0.0
        inside = quality.memberships(torch.stack(samples), reference.outputs, reference.radii(self.neighbours))
        return float((inside > 0).sum()) if self.quality == "precision" else float(inside.sum())

    def init_reference(self) -> ArmState:
        if self.reference_kind == "samples":
            return Neighborhoods(torch.zeros((0, self.output_dim), dtype=torch.float64))
        if self.reference_kind == "moments":
            return FrechetReference.init(self.output_dim)
        return replace(self.form, window=0).init() if self.reference_kind == "kernel" else NoReference()

    def update_reference(self, state: State, seen: Observation) -> ArmState:
        if seen.moments is not None:
            given = FrechetReference.given(seen.moments.mean, seen.moments.covariance, seen.moments.count)
            return replace(given, from_moments=1)
        samples, reference = self.samples(seen.output), state.reference
        if isinstance(reference, Neighborhoods):
            return Neighborhoods(torch.cat([reference.outputs, torch.stack(samples)]))
        if isinstance(reference, FrechetReference):
            return replace(reference.learn_rows(torch.stack(samples)), cache=None)
        if isinstance(reference, MixtureArm):
            return replace(self.form, window=0).update(reference, samples, quality=0.0)
        return super().update_reference(state, seen)

    # -- what it refuses -----------------------------------------------------------------------------------------------

    def _lacking(self, state: State) -> str:
        """What the reference still lacks, in words; "" when nothing."""
        least = {"none": 0, "samples": self.neighbours + 1, "kernel": 1, "moments": 2}[self.reference_kind]
        count = state.reference.count if least else 0
        words = f"{least} samples" + (", or their moments," if self.reference_kind == "moments" else "")
        return f"objective {self.objective} needs a reference of at least {words} and has {count}" if count < least else ""

    def check_ready(self, state: State) -> None:
        if self._lacking(state):
            raise ReferenceMissing(self._lacking(state))

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        self._check_samples("output", seen.output)

    def _check_samples(self, name: str, output: Tensor) -> None:
        if output.ndim != 2 or len(output) == 0 or output.shape[1] != self.output_dim:
            shape = "x".join(map(str, output.shape))
            raise InvalidObservation(name, f"must be one or more samples of length {self.output_dim}, got {shape}")
        if not _is_bounded(output):
            raise InvalidObservation(name, f"must be finite and at most {LARGEST:g} in magnitude")
        cosine = self.kernel == "cosine" and self.objective != "fid"
        if (self.normalize or cosine) and not bool((output.to(torch.float64).abs().amax(dim=1) > 1.0 / LARGEST).all()):
            raise InvalidObservation(
                name, "a vector of zeros has no direction; send another, or use kernel rbf and normalize: false"
            )

    def check_reference(self, state: State, seen: Observation) -> None:
        kind = self.reference_kind
        if kind == "none":
            raise InvalidObservation("outputs", f"objective {self.objective} takes no reference")
        if seen.moments is not None:
            if kind != "moments":
                raise InvalidObservation("moments", f"objective {self.objective} needs samples, not moments")
            if seen.output.numel() or (state.reference.count and not state.reference.from_moments):
                raise InvalidObservation("moments", "cannot be combined with samples; post samples or moments")
            given = seen.moments
            moments.check_given(given.mean, given.covariance, given.count, d=self.output_dim, largest=LARGEST)
            return
        self._check_samples("outputs", seen.output)
        if kind == "moments":
            if state.reference.from_moments:
                raise InvalidObservation("outputs", "the reference was given as moments; samples cannot be added to it")
        elif kind == "samples" or self.form.kernel is not None:
            total = state.reference.count + len(seen.output)
            if total > REFERENCE_SAMPLES:
                raise InvalidObservation("outputs", f"at most {REFERENCE_SAMPLES} reference samples are kept; this makes {total}")


def _is_bounded(values: Tensor) -> bool:
    """Whether all are finite and not too large; compared in float64, as float32 takes the bound itself for infinity."""
    return bool((values.to(torch.float64).abs() <= LARGEST).all())


def unit(x: Tensor) -> Tensor:
    """(e,) scaled to length one."""
    length: Tensor = torch.linalg.vector_norm(x)
    return x / length
