"""Images from untrusted clients: the header is checked from the first bytes; only then, and one at a time, is a file decoded.

    base64 --> bytes --check--> (format, width, height): limits, truncation and animation, milliseconds, no decoder involved
                 |
                 '--decode--> RGB picture, upright, alpha laid on white: Pillow is given the parts that make the picture and the
                              one format that it may open; worker thread

Why a reader of our own (`image_parts`): opening a WebP with Pillow already allocates the whole canvas, and Pillow's own limit of
pixels only warns. URLs are refused: a server that fetches what strangers name can be sent anywhere inside its network.
"""

from __future__ import annotations

import base64
import logging
import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from service.embedders.base import InvalidContent
from service.embedders.encoding import decode_base64
from service.embedders.image_parts import Format, damaged, walk

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

ELONGATED = 50
"""Longer side over shorter one, at most: embedders bring the shorter side to a fixed length, and the longer one grows with it."""
URL = "a URL"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")
_STANDARD = str.maketrans("-_", "+/")
_MARKS = ((0, b"\x89PNG\r\n"), (0, b"\xff\xd8\xff"), (8, b"WEBP"), (0, b"GIF8"), (4, b"ftyp"), (0, b"II*\0"), (0, b"MM\0*"))
"""Where image files say what they are, those included that are not read here: AVIF and HEIC (ftyp), GIF, TIFF."""


BLANK = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")
"""A PNG of one gray pixel, for the first forward pass of an embedder, the slowest of all: no request waits for it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one image file: its bytes, and width times height."""

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
        file = decode_base64(text)
    except ValueError as error:
        raise InvalidContent(str(error)) from None
    check(file, limits)
    return file


def disguised(text: str) -> str:
    """What a text is that seems to represent an image: its base64, a `data:` URL or the URL of a file; "" for any other text.

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
    parts = walk(file)
    width, height = parts.width, parts.height
    if not width or not height:
        raise InvalidContent("has no pixels")
    if width * height > limits.max_pixels:
        raise InvalidContent(f"has {width} x {height} pixels, more than {limits.max_pixels} in all")
    if max(width, height) > ELONGATED * min(width, height):
        raise InvalidContent(f"has {width} x {height} pixels: one side is more than {ELONGATED} times the other")
    return Header(format=parts.format, width=width, height=height)


def decode(file: bytes) -> Image:
    """The picture as 8-bit RGB: upright, CMYK and grey converted, 16 bits cut to 8, alpha laid on white. Blocks (10 ns a pixel).

    Raises `InvalidContent` where the bytes do not hold what their header says. The file was checked.
    """
    from PIL import Image

    picture = None
    try:
        parts = walk(file)
        with Image.open(BytesIO(parts.kept), formats=(parts.format,)) as opened:
            opened.load()
            picture = _rgb(_upright(opened))
    except Exception as error:  # Pillow's plug-ins fail in many ways on garbled files: OSError, SyntaxError, zlib.error ...
        log.debug("an image could not be decoded: %s", type(error).__name__)
    if picture is None:  # raised here: the error above may repeat what is in the file, and would be the cause of ours
        raise damaged()
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
