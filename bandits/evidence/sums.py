"""The sums that `auto` keeps per arm: additive over outcomes, without any prior or scale.

    per arm      n                     outcomes
    per signal   n_k, sum s z, sum s^2     of the outcomes that carry it; s is measured from the
                                           bandit's first value, to keep digits
    per Gram     sum z z'              shared by all signals that came with the same outcomes

An outcome that lacks a signal must not be learned as a 0 of it. The first one that lacks it gives the signal a Gram matrix of its
own, equal so far to the one that it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits.evidence.basis import Basis
from bandits.evidence.features import EvidenceFeatures
from bandits.types import cached_field

Floats = NDArray[np.float64]

TILE = 32
"""Rows of a Gram matrix that are stored together: only the tiles on and below the diagonal are kept."""
HELD = 64
"""Prompts that are held back until they are added in one product of matrices, which costs a tenth of as many single ones."""
POOLED = 1024
"""Held prompts of all arms that are lifted at once: it bounds the memory of a preparation."""


@lru_cache(maxsize=64)
def _tiles(size: int) -> tuple[tuple[int, int, int], ...]:
    """(first row, end row, place in the flat array) of every tile; a tile has as many columns as its end row."""
    found, place = [], 0
    for start in range(0, size, TILE):
        end = min(start + TILE, size)
        found.append((start, end, place))
        place += (end - start) * end
    return tuple(found)


def _flat_length(size: int) -> int:
    start, end, place = _tiles(size)[-1]
    return place + (end - start) * end


def grown_bytes(features: EvidenceFeatures) -> int:
    """Bytes of one Gram matrix with the prompts that are held back."""
    return 8 * (_flat_length(features.size) + HELD * features.dim)


@dataclass(frozen=True)
class Gram:
    """sum z z' over `count` outcomes. tiles: flat lower half, of all but the `held` prompts (d,), which are added HELD at a time,
    so that the bytes depend on the outcomes alone and not on when someone looked; empty before the first time.
    """

    count: int
    tiles: Tensor
    held: tuple[Tensor, ...]

    @staticmethod
    def init() -> Gram:
        """Nothing seen."""
        return Gram(0, torch.empty(0, dtype=torch.float64), ())

    def update(self, x: Tensor, features: EvidenceFeatures) -> Gram:
        """One more prompt (d,)."""
        held = (*self.held, x)
        if len(held) < HELD:
            return Gram(self.count + 1, self.tiles, held)
        tiles = self.tiles.clone() if len(self.tiles) else torch.zeros(_flat_length(features.size), dtype=torch.float64)
        _add(tiles.numpy(), _lifted(held, features))
        return Gram(self.count + 1, tiles, ())

    def projected(self, basis: Basis, features: EvidenceFeatures) -> Floats:
        """(q, q) B G B', the held prompts included."""
        rows = basis.apply(_lifted(self.held, features).T) if self.held else np.zeros((basis.size, 0))
        found: Floats = rows @ rows.T
        if len(self.tiles):
            found += basis.apply(basis.apply(_dense(self.tiles.numpy(), features.size)).T)
        return found


def pooled(grams: Sequence[Gram], features: EvidenceFeatures) -> Floats:
    """(p, p) the sum of several, the held prompts included."""
    flat = np.zeros(_flat_length(features.size))
    for gram in grams:
        if len(gram.tiles):
            flat += gram.tiles.numpy()
    held = [x for gram in grams for x in gram.held]
    for start in range(0, len(held), POOLED):
        _add(flat, _lifted(held[start : start + POOLED], features))
    return _dense(flat, features.size)


def _dense(flat: Floats, size: int) -> Floats:
    """(p, p) of tiles. size: p."""
    found = np.empty((size, size))
    for start, end, place in _tiles(size):
        tile = flat[place : place + (end - start) * end].reshape(end - start, end)
        found[start:end, :end] = tile
        found[:start, start:end] = tile[:, :start].T
    return found


def _lifted(held: Sequence[Tensor], features: EvidenceFeatures) -> Floats:
    return features.lift_all(torch.stack(list(held)).numpy())


def _add(flat: Floats, z: Floats) -> None:
    """Add z'z (n, p) to the tiles."""
    for start, end, place in _tiles(z.shape[1]):
        flat[place : place + (end - start) * end].reshape(end - start, end)[...] += z[:, start:end].T @ z[:, :end]


@dataclass(frozen=True)
class EvidenceArm:
    """The sums of one arm. Letters: S signals, p features.

    pulls: outcomes n.  answered: outcomes ever, those before the sums started over included.
    grams: the first is of all outcomes.  gram_of: (S,) which one a signal uses.  moments: (S, p).  squares: (S,).
    pending: prompts (d,) of open decisions as bytes, sorted: derived from the log, no part of the sums.
    """

    pulls: int
    answered: int
    grams: tuple[Gram, ...]
    gram_of: Tensor
    moments: Tensor
    squares: Tensor
    pending: tuple[bytes, ...] = cached_field()

    @staticmethod
    def init(*, size: int, signals: int) -> EvidenceArm:
        """Nothing seen. size: p."""
        return EvidenceArm(
            0,
            0,
            (Gram.init(),),
            torch.zeros(signals, dtype=torch.int64),
            torch.zeros((signals, size), dtype=torch.float64),
            torch.zeros(signals, dtype=torch.float64),
            (),
        )

    def gram(self, signal: int) -> Gram:
        """The Gram matrix over the outcomes that carry this signal."""
        return self.grams[int(self.gram_of[signal])]

    def update(
        self,
        x: Tensor,
        z: Floats,
        values: Sequence[float],
        features: EvidenceFeatures,
        *,
        held: bool = False,
        was_pending: bool = False,
    ) -> EvidenceArm:
        """One more outcome. x: (d,).  z: (p,) its features.  values: (S,) shifted signals, NaN = missing.  held: other signals
        of it are here already.  was_pending: its decision is open until now.
        """
        carried_or_0 = np.array(values)
        if len(self.grams) == 1 and all(map(math.isfinite, values)):
            grams: tuple[Gram, ...] = (self.grams[0].update(x, features),)
            gram_of = self.gram_of
        else:
            carried = np.isfinite(values)
            grams, gram_of = self._with_prompt(x, carried, features, held=held)
            carried_or_0[~carried] = 0.0
        moments = carried_or_0[:, None] * z
        moments += self.moments.numpy()
        squares = carried_or_0 * carried_or_0
        squares += self.squares.numpy()
        sums = torch.from_numpy(moments), torch.from_numpy(squares)
        pending = _without(self.pending, x) if was_pending else self.pending
        return EvidenceArm(self.pulls + 1, self.answered + 1, grams, gram_of, *sums, pending)

    def amend(self, x: Tensor, z: Floats, old: Floats, new: Floats, features: EvidenceFeatures, *, held: bool) -> EvidenceArm:
        """With new values (S,) of a decision, NaN = unchanged, in place of the old ones, NaN = it was missing. The others as in
        `update`.
        """
        changed, added = np.isfinite(new), np.isfinite(new) & np.isnan(old)
        grams, gram_of = self._with_prompt(x, added, features, held=held) if added.any() else (self.grams, self.gram_of)
        before, after = np.where(changed & ~added, old, 0.0), np.where(changed, new, 0.0)
        moments = self.moments.numpy() + np.multiply.outer(after - before, z)
        squares = self.squares.numpy() + (after * after - before * before)
        sums = torch.from_numpy(moments), torch.from_numpy(np.maximum(squares, 0.0))
        return EvidenceArm(self.pulls, self.answered, grams, gram_of, *sums, self.pending)

    def _with_prompt(
        self, x: Tensor, carried: NDArray[np.bool_], features: EvidenceFeatures, *, held: bool
    ) -> tuple[tuple[Gram, ...], Tensor]:
        """The Gram matrices with a prompt (d,) for the signals that are carried, and in the first one unless it is held there."""
        if carried.all() and len(self.grams) == 1:
            return (self.grams[0].update(x, features),), self.gram_of
        grams, gram_of = self._split(carried, first=1 if held else 0)
        carrying = {int(gram_of[k]) for k in np.flatnonzero(carried)} | (set() if held else {0})
        return tuple(gram.update(x, features) if i in carrying else gram for i, gram in enumerate(grams)), gram_of

    def _split(self, carried: NDArray[np.bool_], *, first: int) -> tuple[tuple[Gram, ...], Tensor]:
        """Grams such that all users of one, except of the first, are either in this outcome or not. Those that are not leave the
        shared one, with a copy of what it holds. first: index of the first Gram that is looked at.
        """
        grams, gram_of = list(self.grams), self.gram_of.clone()
        for index in range(first, len(self.grams)):
            users = [k for k in range(len(carried)) if int(gram_of[k]) == index]
            lacking = [k for k in users if not carried[k]]
            if lacking and (index == 0 or len(lacking) < len(users)):
                grams.append(grams[index])  # shared until one of the two changes: a Gram is never written to
                gram_of[lacking] = len(grams) - 1
        return tuple(grams), gram_of

    def with_pending(self, x: Tensor) -> EvidenceArm:
        """One more open decision with this prompt."""
        return self._with(tuple(sorted((*self.pending, x.numpy().tobytes()))))

    def without_pending(self, x: Tensor) -> EvidenceArm:
        """One open decision with this prompt less, if there is one."""
        return self._with(_without(self.pending, x))

    def _with(self, pending: tuple[bytes, ...]) -> EvidenceArm:  # dataclasses.replace takes four times as long
        return EvidenceArm(self.pulls, self.answered, self.grams, self.gram_of, self.moments, self.squares, pending)


def _without(pending: tuple[bytes, ...], x: Tensor) -> tuple[bytes, ...]:
    key = x.numpy().tobytes()
    if key not in pending:
        return pending
    place = pending.index(key)
    return (*pending[:place], *pending[place + 1 :])
