"""Rules of the house that a tool can check: where modules may be, and which words explain."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import readme

ROOT = Path(__file__).parents[1]
REFUSED = re.compile(r"\b(whoever|nobody|somebody|anew|astray|amid|told|learnt)\b|\bsee the module\b", re.IGNORECASE)
"""Words for which there is a standard term (docs/architecture.md, Glossary), that tell a story instead of stating a fact, or that
are not spelled as in American English."""

PAGES = readme.pages()


def explanations(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring and comment of a file, of what its assertions say, and of the names that it defines."""
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        text = node.msg if isinstance(node, ast.Assert) else node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield text.lineno, text.value
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name.replace("_", " ")


def folders() -> dict[str, list[Path]]:
    """Folder relative to the root -> its own files of Python."""
    found: dict[str, list[Path]] = {}
    for package in ("bandits", "service", "bench", "examples", "tools", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    return found


FOLDERS = folders()


def refused_in(folder: str) -> list[str]:
    """`file:line: word` for each refused word in a folder."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}"
        for path in FOLDERS[folder]
        for line, text in explanations(path)
        for match in REFUSED.finditer(text)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_explanations_use_plain_terms(folder: str) -> None:
    assert refused_in(folder) == [], "say it with a term of the glossary in docs/architecture.md"


def test_the_service_has_no_flat_modules() -> None:
    flat = {path.name for path in (ROOT / "service").glob("*.py")}
    assert flat == {"__init__.py", "__main__.py", "settings.py"}, "a module belongs into a layer's folder"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)\)", index)}
    assert [str(page.relative_to(ROOT)) for page in PAGES if page.name != "index.md" and page.resolve() not in listed] == []


def test_only_its_own_tests_import_bench() -> None:
    """What tests and benches share is in `tools`."""
    paths = [path for folder, paths in FOLDERS.items() if folder.startswith(("tests", "tools")) for path in paths]
    others = [path for path in paths if "tests/bench" not in path.as_posix()]
    importing = [
        str(path.relative_to(ROOT)) for path in others if re.search(r"^\s*(from|import) bench\b", path.read_text(), re.MULTILINE)
    ]
    assert importing == []
