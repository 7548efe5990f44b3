"""Where embedders compute."""

from __future__ import annotations

import torch


def device(name: str) -> torch.device:
    """cpu, cuda (an error where there is none), or auto: cuda where there is one.

    >>> device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("NEXTARM_DEVICE is cuda, and torch sees no GPU")
    return torch.device(name)
