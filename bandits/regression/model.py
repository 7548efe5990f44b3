"""The regression of the reward on the prompt, one per arm, as PAK-UCB, LinUCB and DAK-UCB share it.

features (d,) -- map --> z (p,) --+--> RidgeArm    linear in z: sums, memory independent of the rounds
                                   +--> KernelArm   exact kernel k(z, z'): the last `max_samples` observations
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bandits.errors import InvalidContext
from bandits.functional import kernels
from bandits.regression.kernel import Kernel, KernelArm
from bandits.regression.ridge import Ridge, RidgeArm, held_bytes, ridge_scores
from bandits.types import LAYOUT, Context

FeatureMap = Callable[[Tensor], Tensor]
"""(..., d) -> (..., p)."""


@runtime_checkable
class DeviceScorer(Protocol):
    """A scorer of ridge arms on another device; held in `State.cache` of a bandit that has one."""

    def score(self, derived: Sequence[Ridge], z: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B, K) means and (B, K) widths of lifted prompts z (B, p); None = compute them here."""


LONGEST_SQUARED = 1e10
"""Of k(x, x), in units of the ridge. A width is a difference of numbers up to k(x, x) / ridge times larger than itself, and a
number has 16 digits: at this bound six are left, at 1e14 two."""
LARGEST = 1e100
"""Of k(x, x): its square, times a reward, times a long log, must stay a number."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """The rule by which an arm's statistic is updated with prompts and scores them.

    feature_map: (..., d) -> (..., p).  size: p.  kernel: None = linear in z.  ridge: > 0.  max_samples: kept by an exact kernel.
    """

    feature_map: FeatureMap
    size: int
    ridge: float
    kernel: Kernel | None = None
    max_samples: int = 0

    def init(self) -> RidgeArm | KernelArm:
        """Nothing seen."""
        return RidgeArm.init(self.size) if self.kernel is None else KernelArm.init(self.size)

    @property
    def grown_bytes(self) -> int:
        """Of a statistic beside those that it has at the start, without the samples of an exact kernel."""
        return held_bytes(self.size) if self.kernel is None else 0

    def update(
        self,
        arm: RidgeArm | KernelArm,
        x: Tensor,
        target: float,
        *,
        was_pending: bool,
        offset: int = 0,
        layout: int = LAYOUT,
    ) -> RidgeArm | KernelArm:
        """One more prompt x (d,) and its target; see `Observation.was_pending` and `offset`, and `State.layout`."""
        z = self.feature_map(x)
        if isinstance(arm, RidgeArm):
            return arm.update(z, target, ridge=self.ridge, was_pending=was_pending, layout=layout)
        return arm.update(
            z,
            target,
            kernel=self._exact,
            ridge=self.ridge,
            max_samples=self.max_samples,
            was_pending=was_pending,
            offset=offset,
        )

    def correct(self, arm: RidgeArm | KernelArm, x: Tensor, old: float, new: float, *, learned: int) -> RidgeArm | KernelArm:
        """With the target `old` of a prompt x (d,) replaced. learned: the offset of that observation."""
        if isinstance(arm, RidgeArm):
            return arm.correct(self.feature_map(x), new - old)
        return arm.correct(learned, new)

    def pack_offsets(self, arms: Sequence[RidgeArm | KernelArm]) -> bytes:
        """The offsets of the observations that exact kernels keep, for `unpack_offsets` of the same arms."""
        return b"" if self.kernel is None else json.dumps([arm.offsets for arm in arms if isinstance(arm, KernelArm)]).encode()

    def unpack_offsets(self, arms: Sequence[RidgeArm | KernelArm], data: bytes) -> list[RidgeArm | KernelArm]:
        """The arms, which know their offsets again."""
        if not data:
            return [*arms]
        kept = zip(arms, json.loads(data), strict=True)
        return [replace(arm, offsets=tuple(offsets)) for arm, offsets in kept if isinstance(arm, KernelArm)]

    def update_many(
        self,
        arm: RidgeArm | KernelArm,
        x: Sequence[Tensor],
        targets: Sequence[float],
        *,
        was_pending: Sequence[bool],
        offsets: Sequence[int],
        layout: int = LAYOUT,
    ) -> RidgeArm | KernelArm:
        """`update` with several prompts x (d,) in order."""
        if isinstance(arm, RidgeArm) and len(x) > 1:
            return arm.update_many(self._lifted(x), targets, was_pending=was_pending, layout=layout)
        for prompt, target, known, offset in zip(x, targets, was_pending, offsets, strict=True):
            arm = self.update(arm, prompt, target, was_pending=known, offset=offset, layout=layout)
        return arm

    def add_pending_many(self, arm: RidgeArm | KernelArm, x: Sequence[Tensor]) -> RidgeArm | KernelArm:
        """`add_pending` for several prompts x (d,)."""
        if isinstance(arm, RidgeArm) and len(x) > 1:
            return arm.add_pending_many(torch.stack(self._lifted(x)), ridge=self.ridge)
        for prompt in x:
            arm = self.add_pending(arm, prompt)
        return arm

    def _lifted(self, x: Sequence[Tensor]) -> list[Tensor]:
        """(p,) of each prompt, with the bits that it has alone: the sums must not depend on what came together."""
        many = self.feature_map
        return many.of_each(x) if isinstance(many, CachedFeatureMap) else [many(prompt) for prompt in x]

    def add_pending(self, arm: RidgeArm | KernelArm, x: Tensor) -> RidgeArm | KernelArm:
        """Shrink the width for one pending prompt x (d,)."""
        z = self.feature_map(x)
        if isinstance(arm, RidgeArm):
            return arm.add_pending(z, ridge=self.ridge)
        return arm.add_pending(z, kernel=self._exact, ridge=self.ridge)

    def remove_pending(self, arm: RidgeArm | KernelArm, x: Tensor) -> RidgeArm | KernelArm:
        """Undo one `add_pending`."""
        z = self.feature_map(x)
        if isinstance(arm, RidgeArm):
            return arm.remove_pending(z, ridge=self.ridge)
        return arm.remove_pending(z, kernel=self._exact, ridge=self.ridge)

    def carry_pending(self, old: RidgeArm | KernelArm, new: RidgeArm | KernelArm) -> RidgeArm | KernelArm:
        """The arm `new`, of which nothing is pending, with what is pending in `old`."""
        if isinstance(old, RidgeArm):
            assert isinstance(new, RidgeArm)
            return new.with_pending_of(old, ridge=self.ridge)
        for z in old.cache.pending.points if old.cache else ():
            assert isinstance(new, KernelArm)
            new = new.add_pending(z, kernel=self._exact, ridge=self.ridge)
        return new

    def surprise(self, arm: RidgeArm | KernelArm, x: Tensor, target: float) -> float | None:
        """How far a target is from its mean at a prompt x (d,), with the width taken out; None before any observation."""
        if not arm.pulls:
            return None
        mean, width = self.score([arm], self.feature_map(x[None]))
        return (target - float(mean)) / math.sqrt(1.0 + float(width) ** 2)

    def check(self, x: Tensor) -> None:
        """`InvalidContext` for a prompt x (d,) that is so long that the numbers would keep no digits of the ridge."""
        z = self.feature_map(x)
        with np.errstate(all="ignore"):
            squared = float(z @ z) if self.kernel is None else float(self.kernel(z[None], z[None]))
        check_squared(squared, ridge=self.ridge)

    def is_finite(self, arm: RidgeArm | KernelArm) -> bool:
        """Whether what is derived from an arm consists of numbers: its means and widths then do, too."""
        if isinstance(arm, RidgeArm):
            now = arm.ridge(self.ridge)
            return bool(now.theta.isfinite().all()) and bool(now.pending_inverse.tensor().isfinite().all())
        dual = arm.posterior(self._exact, self.ridge)
        return bool(dual.weights.tensor.isfinite().all()) and bool(dual.factor.factor.isfinite().all())

    def derive(self, arms: Sequence[RidgeArm | KernelArm]) -> None:
        """Factor what was not derived yet, so that the next score does not."""
        for arm in arms:
            if isinstance(arm, RidgeArm):
                arm.ridge(self.ridge)
            else:
                arm.posterior(self._exact, self.ridge)

    def score(self, arms: Sequence[RidgeArm | KernelArm], z: Tensor, device: DeviceScorer | None = None) -> tuple[Tensor, Tensor]:
        """(B, K) means and (B, K) widths of lifted prompts z (B, p). device: asked first, where there is one."""
        if self.kernel is None:
            derived = [arm.ridge(self.ridge) for arm in arms if isinstance(arm, RidgeArm)]
            found = None if device is None else device.score(derived, z)
            return ridge_scores(derived, z) if found is None else found
        mean = torch.empty((len(z), len(arms)), dtype=torch.float64)
        width = torch.empty_like(mean)
        prior = torch.cat([self.kernel(row[None], row[None])[0] for row in z])
        for index, arm in enumerate(arms):
            assert isinstance(arm, KernelArm)
            mean[:, index], width[:, index] = arm.score(z, kernel=self.kernel, prior=prior, ridge=self.ridge)
        return mean, width

    def covariances(self, arm: RidgeArm | KernelArm, z: Tensor) -> Tensor:
        """(B, B) of lifted prompts z (B, p) under one arm; its squared widths are the diagonal."""
        if isinstance(arm, RidgeArm):
            return arm.covariances(z, ridge=self.ridge)
        return arm.covariances(z, kernel=self._exact, ridge=self.ridge)

    @property
    def _exact(self) -> Kernel:
        assert self.kernel is not None, "a KernelArm needs the kernel that it was built with"
        return self.kernel


def stacked(contexts: Sequence[Context]) -> Tensor:
    """(B, d) the features of all contexts."""
    return torch.stack([context.features for context in contexts])


def as_float64(x: Tensor, *, normalize: bool) -> Tensor:
    """(..., d) a float64 copy, each row scaled to length one if asked. Through NumPy, whose calls cost a third: a row of (n, d)
    gets the bits that it has alone.
    """
    if x.ndim == 1 and x.device.type == "cpu":
        row = x.numpy().astype(np.float64)
        return torch.from_numpy(row / np.sqrt(row @ row) if normalize else row)
    if x.ndim == 2 and x.device.type == "cpu":
        rows = x.numpy().astype(np.float64)
        if normalize:
            rows /= np.sqrt(np.matmul(rows[:, None, :], rows[:, :, None])[:, 0])
        return torch.from_numpy(rows)
    x = x.to(torch.float64, copy=True)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True) if normalize else x


REMEMBERED_BYTES = 2**20
"""Of lifted features that are kept per policy."""


class CachedFeatureMap:
    """A map to (p,) = (size,) that remembers the last prompts (d,): a decision lifts its prompt to score it, its fold to mark it
    pending, its outcome to fold it, at 20 us each for d = 384, p = 256. Do not write into what it returns.

    feature_map: gives each row of (B, d) the bits that it has alone, so that what is scored is what will be folded.
    """

    def __init__(self, feature_map: FeatureMap, *, size: int) -> None:
        self._feature_map = feature_map
        self._most = max(8, REMEMBERED_BYTES // (8 * size))
        self._remembered: OrderedDict[bytes, Tensor] = OrderedDict()  # of several threads: each call of it is one step

    def __call__(self, x: Tensor) -> Tensor:
        """(..., p) of (..., d)."""
        if x.dtype != torch.float64 or x.device.type != "cpu" or x.ndim > 2:
            return self._feature_map(x)
        if x.ndim == 1:
            key = x.numpy().tobytes()
            z = self._remembered.get(key)
            return self._remember(key, self._feature_map(x)) if z is None else z
        return torch.stack(self._of_rows(x))

    def of_each(self, x: Sequence[Tensor]) -> list[Tensor]:
        """(p,) of each prompt (d,)."""
        return [self(x[0])] if len(x) == 1 else self._of_rows(torch.stack(list(x)))

    def _of_rows(self, x: Tensor) -> list[Tensor]:
        keys = [row.tobytes() for row in x.numpy()]
        found = {key: self._remembered.get(key) for key in keys}
        missing = [key for key, z in found.items() if z is None]
        if missing:
            rows = x if len(missing) == len(x) else x[[keys.index(key) for key in missing]]
            for key, z in zip(missing, self._feature_map(rows), strict=True):
                found[key] = self._remember(key, z.clone())  # else one that is kept would keep all of them
        return [z for key in keys if (z := found[key]) is not None]

    def _remember(self, key: bytes, z: Tensor) -> Tensor:
        self._remembered[key] = z
        if len(self._remembered) > self._most:
            self._remembered.popitem(last=False)
        return z


def feature_map(x: Tensor, *, normalize: bool, frequencies: Tensor) -> Tensor:
    """(..., 2D) random features of (..., d), or the float64 vector itself where there are no frequencies (0, d)."""
    x = as_float64(x, normalize=normalize)
    if not len(frequencies):
        return x
    if x.ndim == 2 and x.device.type == "cpu":
        return torch.from_numpy(kernels.random_features_of_each(x.numpy(), frequencies.numpy()))
    return kernels.random_features(x, frequencies)


def check_direction(features: Tensor, *, normalize: bool) -> None:
    """`InvalidContext` for a vector that cannot be scaled to length one."""
    if normalize and not features.numpy().any():
        raise InvalidContext("prompt", "a vector of zeros cannot be scaled to length one; send another, or set normalize: false")


def check_squared(squared: float, *, ridge: float) -> None:
    """`InvalidContext` for a prompt whose k(x, x) is `squared`, where that drowns the ridge."""
    bound = min(LONGEST_SQUARED * ridge, LARGEST)
    if not squared <= bound:
        raise InvalidContext(
            "prompt",
            f"is too long for the ridge {ridge:g}: k(x, x) is {squared:.3g} and may be at most {bound:.3g}, else too few "
            "digits are left; scale it down, or set normalize: true or a larger ridge",
        )
