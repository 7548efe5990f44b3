"""What is distributed: the client alone, light, typed, of the server's version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import nextarm
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def test_client_and_server_have_one_version_and_the_server_asks_for_it() -> None:
    client, server = project(CLIENT), project(ROOT)
    assert client["version"] == server["version"] == nextarm.__version__
    assert f"nextarm-client=={server['version']}" in server["dependencies"]
    assert (client["name"], client["license"], client["requires-python"]) == (
        "nextarm-client",
        "Apache-2.0",
        server["requires-python"],
    )
    assert (CLIENT / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_it_needs_httpx2_and_pydantic_alone_and_both_are_pinned() -> None:
    needed = {re.split(r"[<>=]", line)[0] for line in project(CLIENT)["dependencies"]}
    assert needed == {"httpx2", "pydantic"}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    closed: set[str] = set()
    while needed:
        name = needed.pop()
        closed.add(name)
        found = map(Requirement, requires(name) or ())
        needed |= {one.name.lower() for one in found if one.marker is None or one.marker.evaluate({"extra": ""})} - closed
    assert {name.replace("_", "-") for name in closed} <= {name.replace("_", "-") for name in pinned}


def test_it_imports_nothing_of_the_server_and_http_with_the_first_client_alone() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CLIENT / "src")}
    program = "import sys, nextarm; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint(
        {"service", "bandits", "torch", "numpy", "fastapi", "starlette", "msgspec", "httpx", "requests", "asyncio", "httpx2"}
    )


def test_the_wheel_holds_the_package_with_its_types(tmp_path: Path) -> None:
    """Built from a copy, so that the checkout stays as it is; without an index."""
    copy = tmp_path / "client"
    subprocess.run(["cp", "-r", CLIENT, copy], check=True)
    program = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=copy, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"nextarm/{path.name}" for path in (CLIENT / "src" / "nextarm").glob("*.py")}
    assert modules | {"nextarm/py.typed"} <= names
    assert {name.split("/")[0] for name in names} == {"nextarm", f"nextarm_client-{nextarm.__version__}.dist-info"}


def test_nothing_of_the_server_is_named_like_the_import() -> None:
    assert not (ROOT / "nextarm").exists()
    assert not (ROOT / "nextarm.py").exists()


def test_the_public_names_are_there() -> None:
    assert nextarm.__all__ == sorted(nextarm.__all__)
    assert all(hasattr(nextarm, name) for name in nextarm.__all__)
    assert "request" in vars(nextarm.Client.__mro__[2]), "the methods are described by Routes"
