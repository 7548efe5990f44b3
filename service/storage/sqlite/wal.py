"""Detects damage in the middle of an SQLite write-ahead log, which SQLite itself takes for the end of the log.

    header (32)  | frame | frame | frame | ...      frame = header (24): page, size, salts, checksum . one page
    checksum of a frame = f(checksum of the frame before it, its first 8 bytes, its page)

SQLite stops at the first frame whose checksum does not hold and ignores everything behind it. That is right for a torn tail:
the write was cut off and never acknowledged. But if the next frame continues from this frame's checksum, this one was whole
once, and everything behind it would be lost silently. The format: https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np

HEADER, FRAME = 32, 24
MAGIC = 0x377F0682
"""Checksums over little-endian words; one more: over big-endian words."""

Sums = tuple[int, int]


def damage(database: Path) -> str:
    """Where the write-ahead log of a database that no process has open is damaged; "" where it is whole or has a torn tail."""
    path = database.with_name(database.name + "-wal")
    if not path.is_file():
        return ""
    content = np.fromfile(path, dtype=np.uint8)
    if not database.stat().st_size:
        return f"{path}: it belongs to a database that has become empty" if len(content) else ""
    page = _page_size(database)
    if page < 512 or page & (page - 1) or len(content) < HEADER + FRAME + page:
        return ""  # nothing to judge; a database whose own header is damaged is refused by SQLite
    return _Frames(content, page).damage(path)


def _page_size(database: Path) -> int:
    with database.open("rb") as file:
        size = int.from_bytes(file.read(18)[16:18], "big")
    return 65536 if size == 1 else size


class _Frames:
    """The frames of a write-ahead log in memory."""

    def __init__(self, content: np.ndarray, page: int) -> None:
        self._content = content
        self._size = FRAME + page
        magic = self._number(0)
        order = {MAGIC: "little", MAGIC + 1: "big"}.get(magic, sys.byteorder)
        self._word = np.dtype("<u4" if order == "little" else ">u4")
        self._factors = _factors((8 + page) // 8)

    def __len__(self) -> int:
        return (len(self._content) - HEADER) // self._size

    def damage(self, path: Path) -> str:
        """The first frame that was whole once and is not any more; "" if there is none."""
        header = self._sums(self._content[:24], (0, 0))
        kept = self._stored(24)
        if header != kept:
            whole = any(self._follows(0, seed) for seed in (header, kept))
            return f"{path}, byte 0: the header does not match its checksum, but frames follow it" if whole else ""
        # Checksums are chained: if the next frame follows from this one's stored checksum, or from the computed one, this frame
        # was whole when that one was written: no torn tail. Old frames behind the end have other salts and are no evidence.
        sums = header
        for index in range(len(self)):
            start = HEADER + index * self._size
            now = self._frame_sums(index, sums)
            if self._salts(start + 8) != self._salts(16) or now != self._stored(start + 16):
                goes_on = index + 1 < len(self) and self._salts(start + self._size + 8) == self._salts(16)
                if goes_on and any(self._follows(index + 1, seed) for seed in (now, self._stored(start + 16))):
                    return f"{path}, byte {start}: a frame does not match its checksum, but frames follow it"
                return ""
            sums = now
        return ""

    def _follows(self, index: int, seed: Sums) -> bool:
        return self._frame_sums(index, seed) == self._stored(HEADER + index * self._size + 16)

    def _frame_sums(self, index: int, seed: Sums) -> Sums:
        start = HEADER + index * self._size
        covered = np.concatenate([self._content[start : start + 8], self._content[start + FRAME : start + self._size]])
        return self._sums(covered, seed)

    def _sums(self, covered: np.ndarray, seed: Sums) -> Sums:
        """The checksum of a multiple of 8 bytes that goes on from `seed`."""
        pairs = covered.view(self._word).astype(np.uint32).reshape(-1, 2)
        factors = self._factors[-len(pairs) - 1 :]
        first = (factors[0] * np.array(seed, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
        rest = (factors[1:] * (pairs @ _PAIR)[:, None, :]).sum(axis=(0, 2), dtype=np.uint32)
        total = first + rest
        return int(total[0]), int(total[1])

    def _stored(self, at: int) -> Sums:
        return self._number(at), self._number(at + 4)

    def _salts(self, at: int) -> bytes:
        return self._content[at : at + 8].tobytes()

    def _number(self, at: int) -> int:
        return int.from_bytes(self._content[at : at + 4].tobytes(), "big")


_STEP = np.array([[1, 1], [1, 2]], dtype=np.uint32)
_PAIR = np.array([[1, 1], [0, 1]], dtype=np.uint32)
"""One step of the checksum, s0 += a + s1; s1 += b + s0, is (s0, s1) -> _STEP (s0, s1) + (a, b) _PAIR, modulo 2^32."""


@cache
def _factors(pairs: int) -> np.ndarray:
    """(pairs + 1, 2, 2) the powers _STEP^pairs, ..., _STEP, 1, so that a checksum is one weighted sum."""
    powers = [np.eye(2, dtype=np.uint32)]
    for _ in range(pairs):
        powers.append(_STEP @ powers[-1])
    return np.stack(powers[::-1])
