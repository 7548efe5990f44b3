"""The files of a deployment, read as those who act on them read them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETTINGS = {f"NEXTARM_{name.upper()}" for name in Settings.model_fields}
MIB = 2**20
UNITS = {"": 1, "k": 2**10, "m": MIB, "g": 2**30, "ki": 2**10, "mi": MIB, "gi": 2**30, "kb": 2**10, "mb": MIB, "gb": 2**30}
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::?(?P<how>[-?])(?P<word>[^}]*))?\})")


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file; a key that stands twice is refused."""
    return [found for found in YAML(typ="safe", pure=True).load_all(path.read_text()) if found is not None]


def document(path: Path) -> Any:
    """The one document of a YAML file."""
    (found,) = documents(path)
    return found


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """What docker compose makes of `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, `$$`; `KeyError` for what must be set."""
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if environment.get(match["name"]):
            return environment[match["name"]]
        if match["how"] == "?":
            raise KeyError(match["name"])
        return match["word"] or ""

    return _VARIABLE.sub(replaced, value)


def size(text: str) -> int:
    """Bytes of `512M`, `3Gi`, `2gb`."""
    match = re.fullmatch(r"(\d+)([a-zA-Z]*)", text)
    assert match is not None, text
    return int(match[1]) * UNITS[match[2].lower()]


def seconds(text: str) -> int:
    """Of `30s`, `2m`."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
