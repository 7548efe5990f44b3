"""The environment of the benches' own: other people's libraries live there, never beside the service."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2] / "out" / "peers" / "venv"
CONSTRAINTS = ("torch==2.13.0", "numpy==2.4.6", "scipy==1.17.1")
"""A peer may ask for torch; without these pip would bring gigabytes for graphics cards."""


def python() -> Path:
    """The interpreter of that environment."""
    return HOME / "bin" / "python"


def packages() -> Path:
    """Where its packages lie."""
    return HOME / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def create() -> None:
    """An empty environment, where there is none yet."""
    if not python().exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)


def install(*requirements: str, seconds: float = 600.0) -> str:
    """Install these; "" or the last lines of what pip said. Never more of torch than a wheel for CPUs."""
    create()
    there = {path.name.partition("-")[0] for path in packages().glob("*.dist-info")}
    if {requirement.partition("<")[0] for requirement in requirements} <= there:
        return ""
    limits = HOME.parent / "constraints.txt"
    limits.write_text("\n".join(CONSTRAINTS) + "\n")
    command = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(limits), *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"pip took longer than {seconds:.0f} s"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else " ".join(errors[-2:] or done.stderr.splitlines()[-2:])


def borrowed(name: str) -> Any | None:
    """A module of that environment, imported into this process behind everything of our own; None where it is not installed."""
    folder = packages()
    if not (folder / name).is_dir():
        return None
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
