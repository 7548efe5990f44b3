"""README and docs say what is so: commands work as pasted, answers are real, tables follow from the code, links lead somewhere.

A block of bash or Python after <!-- tested --> is run, in order, against a server of the page's own. A ```json block behind it
(words may stand between) is a part of what its last commands answered: every field that it shows must be there, and numbers to
the digits that are shown; "..." is anything.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bandits.registry import POLICIES
from service.__main__ import main
from service.cli.replay.server import private_server
from tools import readme

ROOT = readme.ROOT
CLIENT = ROOT / "clients" / "python" / "src"
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in readme.pages()}
TESTED = re.compile(r"<!-- tested -->\n```(bash|python)\n(.*?)```(?:(?:(?!```|<!--).)*?```json\n(.*?)```)?", flags=re.DOTALL)
RUN = {"bash": ("bash", "-euo", "pipefail", "-c"), "python": (sys.executable, "-c")}
YOURS = {"bandits/policies/yours.py", "docs/policies/yours.md", "service/embedders/yours.py", "service/storage/yours.py"}
"""Files that CONTRIBUTING.md asks a reader to write."""
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
OWN_PAGES = sorted(page for page in PAGES if page.startswith("docs/policies/") and Path(page).stem not in ("baselines", "index"))


def documents(text: str) -> list[Any]:
    """The JSON documents that stand one after the other in a text; decimals keep their digits."""
    decoder, found, at = json.JSONDecoder(parse_float=Decimal), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


def is_part(shown: Any, answered: Any) -> bool:
    """Whether an answer holds everything that is shown of it."""
    if shown == "...":
        return True
    if isinstance(shown, dict):
        return isinstance(answered, dict) and all(key in answered and is_part(shown[key], answered[key]) for key in shown)
    if isinstance(shown, list):
        same_length = isinstance(answered, list) and len(shown) == len(answered)
        return same_length and all(is_part(one, other) for one, other in zip(shown, answered, strict=True))
    if isinstance(shown, Decimal) and isinstance(answered, Decimal | int) and not isinstance(answered, bool):
        return abs(shown - answered) <= Decimal(1).scaleb(int(shown.as_tuple().exponent))
    return type(shown) is type(answered) and bool(shown == answered)


def test_the_comparison_of_answers_sees_a_wrong_digit_and_a_missing_field() -> None:
    (answered,) = documents('{"a": 0.12345, "b": [1, 2], "c": null}')
    assert is_part(documents('{"a": 0.123, "b": [1, 2]}')[0], answered)
    assert not is_part(documents('{"a": 0.125}')[0], answered)
    assert not is_part(documents('{"b": [1]}')[0], answered)
    assert not is_part(documents('{"c": 0}')[0], answered)
    assert not is_part(documents('{"d": 1}')[0], answered)


@EVERY_PAGE
def test_the_tables_are_what_the_code_says(page: str) -> None:
    assert readme.filled(PAGES[page]) == PAGES[page], "run: .venv/bin/python -m tools.readme"


def test_the_tables_stand_where_they_belong() -> None:
    held = {page: readme.tables_in(text) for page, text in PAGES.items()}
    assert held["README.md"] == ["pays"]
    assert [held[f"docs/{page}.md"] for page in ("api", "policies/index", "settings")] == [["routes"], ["policies"], ["settings"]]
    names = [name for tables in held.values() for name in tables]
    assert sorted(name for name in names if name.startswith("hyper")) == sorted(f"hyperparameters {kind}" for kind in POLICIES)
    assert all(Path(page).stem in POLICIES for page in OWN_PAGES)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if TESTED.search(text)])
def test_the_commands_work_as_pasted_and_answer_what_is_shown(page: str, tmp_path: Path) -> None:
    with private_server() as url:
        for language, block, shown in TESTED.findall(PAGES[page]):
            script = block.replace("localhost:8000", url.removeprefix("http://")).replace("curl -s", "curl -sS --fail-with-body")
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `nextarm`
            done = subprocess.run(
                [*RUN[language], script],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, CLIENT)))},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            expected = documents(shown)
            answered = documents(done.stdout)[-len(expected) :] if expected else []
            assert len(expected) == len(answered), f"{block}\n{done.stdout}"
            for one, other in zip(expected, answered, strict=True):
                assert is_part(one, other), f"{block}\n{done.stdout}"


def test_no_two_pages_create_the_same_bandit() -> None:
    """A reader tries one page after the other on one server, where the second would find what the first has learned."""
    creates = re.compile(r"(?:PUT localhost:8000/v1/bandits/|create_bandit\(\")([\w-]+)[ \"]")
    created = [set(creates.findall("".join(block for _, block, _ in TESTED.findall(text)))) for text in PAGES.values()]
    names = [name for found in created for name in found]
    assert len(names) > 10
    assert sorted({name for name in names if names.count(name) > 1}) == []


@EVERY_PAGE
def test_python_that_is_not_run_is_python_at_least(page: str) -> None:
    """What needs another library, a model or a key is shown and not run."""
    for block in re.findall(r"^```python\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE):
        compile(block, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", ["README.md", "docs/embedders.md", *OWN_PAGES])
def test_a_page_has_commands_that_are_tested(page: str) -> None:
    assert len(TESTED.findall(PAGES[page])) >= 3


@EVERY_PAGE
def test_every_file_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"`((?:bandits|service|bench|tests|docs|tools)/[\w/.-]+)`", PAGES[page])) - YOURS
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@EVERY_PAGE
def test_every_link_and_picture_leads_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    targets = {link: (ROOT / page).parent / link.partition("#")[0] if link.partition("#")[0] else ROOT / page for link in links}
    assert [link for link, path in sorted(targets.items()) if not path.exists()] == []
    anchors = [(link.partition("#")[2], path) for link, path in targets.items() if "#" in link]
    assert [anchor for anchor, path in anchors if anchor not in headings(path)] == []


def headings(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


def test_no_picture_is_heavy() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs").rglob("*.png")}
    assert [name for name, size in sizes.items() if size >= 150_000] == []


def test_the_readme_is_short() -> None:
    """What a reader does not need to start belongs into docs/."""
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_command_has_its_row() -> None:
    assert sorted(re.findall(r"^\| `nextarm ([a-z]+)", PAGES["docs/command_line.md"], re.MULTILINE)) == sorted(main.commands)
