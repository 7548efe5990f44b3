"""The segments of a PNG, JPEG or WebP file that make its picture, found by walking the format without decoding.

    file --walk--> Parts: format, width, height, and the bytes that a decoder needs

Files carry much else: the film behind a phone's photograph, the workflow of an image generator, previews, color profiles,
comments. Decoders have limits and faults of their own for these, so none of it reaches one. Kept is what gives pixels (colors
are not managed here, so that gamma and profiles give none) and what says how the picture is turned.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.embedders.base import InvalidContent

Format = Literal["PNG", "JPEG", "WEBP"]

SCANS = 64
"""Of a progressive JPEG, at most: each costs a pass over every pixel. Cameras and encoders write about ten."""
CHUNKS = 100_000
"""Parts of a file that are walked through; a picture of ten megabytes has some thousands."""
NOTE_BYTES = 65_536
"""Of a text that may say how the picture is turned, at most, unpacked; a JPEG's segment cannot hold more either."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of an image file.

    kept: the file without what makes no picture.  width, height: the largest that a decoder could believe.
    """

    format: Format
    width: int
    height: int
    kept: bytes


def walk(file: bytes) -> Parts:
    """The parts, or `InvalidContent`."""
    parts = None
    try:
        parts = _parts(file)
    except (struct.error, IndexError):  # cut off within a number
        parts = None
    if parts is None:  # raised here: the error above would be the cause of ours
        raise damaged()
    return parts


def damaged() -> InvalidContent:
    """What is said of a file that does not hold what it promises."""
    return InvalidContent("is cut off or damaged")


def _parts(file: bytes) -> Parts:
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if file.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return _webp(file)
    raise InvalidContent("is no PNG, JPEG or WebP")


def _animated() -> InvalidContent:
    return InvalidContent("is animated; send one picture, or each frame as an output of its own")


# -- PNG ---------------------------------------------------------------------------------------------------------------------

_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))
_OPTIONAL = 0x20  # a small first letter
_NOTES = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def _png(file: bytes) -> Parts:
    """PNG specification (third edition), sec. 5: chunks of length, type, content, CRC; IHDR first, IEND last."""
    width, height = struct.unpack(">II", file[16:24])
    kept, at = [file[:8]], 8
    for number in range(CHUNKS):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, end = file[at + 4 : at + 8], at + 12 + length
        if kind == b"acTL":
            raise _animated()
        # one IHDR: a decoder would believe the last one
        if end > len(file) or (kind == b"IHDR") != (number == 0):
            raise damaged()
        if kind not in _PIXELS and not kind[0] & _OPTIONAL:  # without it the picture would be another one
            raise damaged()
        if kind in _PIXELS or _turns(kind, file[at + 8 : at + 8 + min(length, NOTE_BYTES + 1)]):
            if zlib.crc32(memoryview(file)[at + 4 : end - 4]) != int.from_bytes(file[end - 4 : end], "big"):
                raise damaged()
            kept.append(file[at:end])
        if kind == b"IEND":
            return Parts(format="PNG", width=width, height=height, kept=b"".join(kept))
        at = end
    raise damaged()


def _turns(kind: bytes, content: bytes) -> bool:
    """Whether a chunk of text may hold the orientation, as programs wrote it before there was eXIf; one that unpacks to much is
    left out.
    """
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(content) > NOTE_BYTES or not content.startswith(_NOTES):
        return False
    packed = content.index(b"\0") + 2
    if kind == b"zTXt":
        unpacking = zlib.decompressobj()
        try:
            unpacking.decompress(content[packed:], NOTE_BYTES)
        except zlib.error:
            return False
        return unpacking.eof
    return kind == b"tEXt" or content[packed - 1 : packed] == b"\0"  # iTXt: not compressed


# -- JPEG --------------------------------------------------------------------------------------------------------------------

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_SCAN, _END, _FILL, _COMMENT = 0xDA, 0xD9, 0xFF, 0xFE
_APPLICATIONS = {
    0xE0: (b"",),  # JFIF: which colors
    0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),  # the orientation
    0xEE: (b"Adobe",),  # which colors
}


def _jpeg(file: bytes) -> Parts:  # noqa: C901 - the annex is one automaton; every branch returns to its loop
    """ITU-T T.81, annex B: segments of marker, length, content; behind the header of a scan its data up to the next marker. What
    follows the end of the image is not part of it.
    """
    markers = _markers(file)
    kept, at, scans, sides = [file[:2]], 2, 0, (0, 0)
    for _ in range(CHUNKS):
        if file[at] != 0xFF:
            raise damaged()
        marker = file[at + 1]
        if marker == _END:
            if not scans:
                raise damaged()
            kept.append(file[at : at + 2])
            return Parts(format="JPEG", width=sides[1], height=sides[0], kept=b"".join(kept))
        if marker == _FILL or marker in _ALONE:
            at += 1 if marker == _FILL else 2
            continue
        (length,) = struct.unpack(">H", file[at + 2 : at + 4])
        end = at + 2 + length
        if marker in _FRAMES:
            if any(sides):  # a decoder would believe the second
                raise damaged()
            sides = struct.unpack(">HH", file[at + 5 : at + 9])
        if marker == _SCAN:
            scans += 1
            if scans > SCANS:
                raise InvalidContent(f"has more than {SCANS} scans")
            following = int(np.searchsorted(markers, end))
            if following == len(markers):
                raise damaged()
            end = int(markers[following])
        if length < 2 or end > len(file):
            raise damaged()
        if not (0xE0 <= marker <= 0xEF or marker == _COMMENT) or file[at + 4 : end].startswith(_APPLICATIONS.get(marker, ())):
            kept.append(file[at:end])
        at = end
    raise damaged()


def _markers(file: bytes) -> np.ndarray:
    """(m,) where 0xFF is followed by what is neither a stuffed zero, nor a restart, nor fill: within the data of a scan, its end.
    One pass over the file, whatever its bytes are.
    """
    codes = np.frombuffer(file, dtype=np.uint8)
    following = codes[1:]
    return np.flatnonzero((codes[:-1] == 0xFF) & (following != 0x00) & (following & 0xF8 != 0xD0) & (following != 0xFF))


# -- WebP --------------------------------------------------------------------------------------------------------------------

_WITH_PROFILE, _WITH_XMP, _MOVES = 0x20, 0x04, 0x02


def _webp(file: bytes) -> Parts:
    """RFC 9649, sec. 2: RIFF of chunks; VP8X says the canvas and whether it moves, else VP8 or VP8L holds the one picture."""
    (size,) = struct.unpack("<I", file[4:8])
    if size + 8 > len(file):
        raise damaged()
    canvas, kept, header = b"", [], None
    for kind, chunk in _riff(file, size + 8):
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and chunk[8] & _MOVES):
            raise _animated()
        if kind == b"VP8X" and not canvas and header is None:
            canvas = chunk
        elif kind in (b"VP8 ", b"VP8L") and header is None:
            header = _webp_size(chunk)
            kept.append(chunk)
        elif canvas and (kind in (b"ALPH", b"EXIF") or (kind == b"XMP " and len(chunk) <= NOTE_BYTES)):
            kept.append(chunk)
        if header is not None and not canvas:
            break
    if header is None:
        raise damaged()
    width, height = header
    if canvas:  # a decoder believes the picture, not the canvas; the larger one counts
        width, height = (
            max(side, 1 + int.from_bytes(canvas[i : i + 3], "little")) for side, i in zip(header, (12, 15), strict=True)
        )
        has_xmp = any(chunk.startswith(b"XMP ") for chunk in kept)
        flags = canvas[8] & ~(_WITH_PROFILE | (0 if has_xmp else _WITH_XMP))
        kept.insert(0, canvas[:8] + bytes([flags]) + canvas[9:])
    content = b"WEBP" + b"".join(kept)
    return Parts(format="WEBP", width=width, height=height, kept=b"RIFF" + struct.pack("<I", len(content)) + content)


def _riff(file: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of every chunk, its head and its padding included."""
    at = 12
    for _ in range(CHUNKS):
        if at >= end:
            return
        (length,) = struct.unpack("<I", file[at + 4 : at + 8])
        following = at + 8 + length + length % 2
        if at + 8 + length > end:
            raise damaged()
        yield file[at : at + 4], file[at : at + 8 + length] + b"\0" * (length % 2)
        at = following


def _webp_size(chunk: bytes) -> tuple[int, int]:
    """Width and height of the chunk VP8 (RFC 6386, sec. 9.1) or VP8L (RFC 9649, sec. 3.4)."""
    if chunk.startswith(b"VP8 ") and chunk[11:14] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", chunk[14:18]))
        return width, height
    if chunk.startswith(b"VP8L") and chunk[8] == 0x2F:
        (bits,) = struct.unpack("<I", chunk[9:13])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise damaged()
