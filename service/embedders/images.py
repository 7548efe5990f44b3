"""Images from strangers: what a file claims is read from its first bytes; only then, and one at a time, is it decoded.

    base64 --> bytes --check--> (format, width, height): limits, truncation and animation, microseconds, no decoder involved
                 |
                 '--decode--> RGB picture, upright, alpha laid on white: Pillow, told which one format it may open; worker thread

Why a reader of headers of our own: opening a WebP with Pillow already allocates the whole canvas, and Pillow's own limit of
pixels only warns. URLs are refused: a server that fetches what strangers name can be sent anywhere inside its network.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np

from service.embedders.base import InvalidContent

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

Format = Literal["PNG", "JPEG", "WEBP"]

ELONGATED = 50
"""Longer side over shorter one, at most: embedders bring the shorter side to a fixed length, and the longer one grows with it."""
SCANS = 64
"""Of a progressive JPEG, at most: each costs a pass over every pixel. Cameras and encoders write about ten."""
CHUNKS = 100_000
"""Parts of a file that are walked through; a picture of ten megabytes has some thousands."""


URL = "a URL"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")
_STANDARD = str.maketrans("-_", "+/")
_MARKS = ((0, b"\x89PNG\r\n"), (0, b"\xff\xd8\xff"), (8, b"WEBP"), (0, b"GIF8"), (4, b"ftyp"), (0, b"II*\0"), (0, b"MM\0*"))
"""Where image files say what they are, those included that are not read here: AVIF and HEIC (ftyp), GIF, TIFF."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one image file: its bytes, and width times height."""

    max_bytes: int = 10_000_000
    max_pixels: int = 16_000_000


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself."""

    format: Format
    width: int
    height: int


def from_base64(text: str, limits: Limits) -> bytes:
    """The checked bytes of an image file, or `InvalidContent`."""
    start = text[:64].lstrip().lower()
    if start.startswith("data:"):
        raise InvalidContent("send the base64 alone, without the `data:...,` before it")
    if "://" in start:
        raise InvalidContent("URLs are not fetched: this server makes no request on a client's behalf; send the file as base64")
    if len(text) * 3 // 4 - 2 > limits.max_bytes:
        raise InvalidContent(f"is larger than {limits.max_bytes} bytes")
    try:
        file = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        file = None  # raised below: this error would be the cause of ours
    if file is None:
        raise InvalidContent("is not base64")
    check(file, limits)
    return file


def disguised(text: str) -> str:
    """What a text is that stands for an image: its base64, a `data:` URL or the URL of a file; "" for any other text.

    >>> disguised("iVBORw0KGgoAAAANSUhEUgAAACAAAAAg"), disguised("a red circle")
    ('the base64 of an image', '')
    """
    stripped = text.strip()
    if _DATA_URL.match(stripped):
        return "a `data:` URL"
    if _URL.fullmatch(stripped):
        return URL
    letters = "".join(stripped[:256].split())[:64].translate(_STANDARD)
    if not _BASE64.fullmatch(letters):
        return ""
    start = base64.b64decode(letters[: len(letters) // 4 * 4])
    return "the base64 of an image" if any(start[at:].startswith(mark) for at, mark in _MARKS) else ""


def check(file: bytes, limits: Limits) -> Header:
    """What the file says about itself, or `InvalidContent` with the reason why it cannot be taken. Nothing is decoded."""
    if len(file) > limits.max_bytes:
        raise InvalidContent(f"is larger than {limits.max_bytes} bytes")
    try:
        header = _header(file)
    except (struct.error, IndexError):
        header = None
    if header is None:
        raise InvalidContent("is cut off or damaged")
    width, height = header.width, header.height
    if not width or not height:
        raise InvalidContent("has no pixels")
    if width * height > limits.max_pixels:
        raise InvalidContent(f"has {width} x {height} pixels, more than {limits.max_pixels} in all")
    if max(width, height) > ELONGATED * min(width, height):
        raise InvalidContent(f"has {width} x {height} pixels: one side is more than {ELONGATED} times the other")
    return header


def _header(file: bytes) -> Header:
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if file.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return _webp(file)
    raise InvalidContent("is no PNG, JPEG or WebP")


def _animated() -> InvalidContent:
    return InvalidContent("is animated; send one picture, or each frame as an output of its own")


def _damaged() -> InvalidContent:
    return InvalidContent("is cut off or damaged")


def _png(file: bytes) -> Header:
    """PNG specification (third edition), sec. 5: chunks of length, type, content, CRC; IHDR first, IEND last."""
    width, height = struct.unpack(">II", file[16:24])
    if file[12:16] != b"IHDR":
        raise _damaged()
    at = 8
    for _ in range(CHUNKS):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind = file[at + 4 : at + 8]
        if kind == b"acTL":
            raise _animated()
        at += 12 + length
        if at > len(file):
            break
        if kind == b"IEND":
            return Header(format="PNG", width=width, height=height)
    raise _damaged()


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))


def _jpeg(file: bytes) -> Header:
    """ITU-T T.81, annex B: segments of marker, length, content; the frame header holds height and width."""
    if file.count(b"\xff\xda") > SCANS:
        raise InvalidContent(f"has more than {SCANS} scans")
    if b"\xff\xd9" not in file[file.rfind(b"\xff\xda") :]:  # no end behind the last scan
        raise _damaged()
    at = 2
    for _ in range(CHUNKS):
        if file[at] != 0xFF:
            raise _damaged()
        marker = file[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            height, width = struct.unpack(">HH", file[at + 5 : at + 9])
            return Header(format="JPEG", width=width, height=height)
        else:
            (length,) = struct.unpack(">H", file[at + 2 : at + 4])
            at += 2 + max(length, 2)
    raise _damaged()


def _webp(file: bytes) -> Header:
    """RFC 9649, sec. 2: RIFF of chunks; VP8X says the canvas and whether it moves, else VP8 or VP8L holds the one picture."""
    (size,) = struct.unpack("<I", file[4:8])
    if size + 8 > len(file):
        raise _damaged()
    kind = file[12:16]
    if kind == b"VP8X":
        if file[20] & 0x02:
            raise _animated()
        width, height = (1 + int.from_bytes(file[at : at + 3], "little") for at in (24, 27))
        inner = _webp_picture(file)
        return Header(format="WEBP", width=max(width, inner.width), height=max(height, inner.height))
    return _webp_size(file, 12)


def _webp_picture(file: bytes) -> Header:
    """Of the picture in an extended file: a decoder believes it, not the canvas."""
    at = 30
    for _ in range(CHUNKS):
        kind, length = file[at : at + 4], struct.unpack("<I", file[at + 4 : at + 8])[0]
        if kind in (b"VP8 ", b"VP8L"):
            return _webp_size(file, at)
        if kind in (b"ANIM", b"ANMF"):
            raise _animated()
        at += 8 + length + length % 2
    raise _damaged()


def _webp_size(file: bytes, at: int) -> Header:
    """Of the chunk VP8 (RFC 6386, sec. 9.1) or VP8L (RFC 9649, sec. 3.4) at this place."""
    kind = file[at : at + 4]
    if kind == b"VP8 " and file[at + 11 : at + 14] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", file[at + 14 : at + 18]))
    elif kind == b"VP8L" and file[at + 8] == 0x2F:
        (bits,) = struct.unpack("<I", file[at + 9 : at + 13])
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        raise _damaged()
    return Header(format="WEBP", width=width, height=height)


def decode(file: bytes) -> Image:
    """The picture as 8-bit RGB: upright, CMYK and grey converted, 16 bits cut to 8, alpha laid on white. Blocks (10 ns a pixel).

    Raises `InvalidContent` where the bytes do not hold what their header says. The file was checked.
    """
    from PIL import Image

    picture = None
    try:
        with Image.open(BytesIO(file), formats=(_header(file).format,)) as opened:
            opened.load()
            picture = _rgb(_upright(opened))
    except Exception as error:  # Pillow's plug-ins fail in many ways on garbled files: OSError, SyntaxError, zlib.error ...
        log.debug("an image could not be decoded: %s", type(error).__name__)
    if picture is None:  # raised here: the error above may repeat what is in the file, and would be the cause of ours
        raise _damaged()
    return picture


def _upright(picture: Image) -> Image:
    """Turned as its EXIF orientation says. EXIF that cannot be read says nothing: the pixels are there all the same."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception as error:
        log.debug("EXIF could not be read: %s", type(error).__name__)
        return picture


def _rgb(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion would clip at 255
        grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        white = Image.new("RGB", layers.size, "white")
        white.paste(layers, mask=layers.getchannel("A"))
        return white
    return picture.convert("RGB")
