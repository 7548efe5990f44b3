"""Decoding of base64 in every form that clients send: wrapped in lines, unpadded, or in the URL-safe alphabet."""

from __future__ import annotations

import base64
import binascii

_STANDARD = str.maketrans("-_", "+/")


def decode_base64(text: str) -> bytes:
    """The bytes; ValueError where the text holds other characters, or a number of them that no bytes have."""
    try:
        return base64.b64decode(text, validate=True)  # nearly always: nothing is copied
    except (binascii.Error, ValueError):
        pass
    letters = "".join(text.split()).rstrip("=").translate(_STANDARD)
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ValueError("is not base64: send A-Z a-z 0-9 + / (or - _), padding and line breaks may be left out")
