"""Rules of the house that a tool can check: where modules may be, and which words explain."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandits.registry import POLICIES
from service import install_hint
from service.embedders.registry import EMBEDDERS
from service.scorers.registry import SCORERS
from tests.bandits.examples import EXAMPLES
from tools import readme

ROOT = Path(__file__).parents[1]
REFUSED = re.compile(r"\b(whoever|nobody|somebody|anew|astray|amid|told|learnt)\b|\bsee the module\b", re.IGNORECASE)
"""Words for which there is a standard term (docs/architecture.md, Glossary), that tell a story instead of stating a fact, or that
are not spelled as in American English."""

GERUNDS = {
    "ReferenceMissing": "a failure is named for what failed; released",
    "Staging": "staging memory",
    "_Closing": "a state of connections, ends in a participle",
    "Waiting": "a participle: the observations that wait",
    "Pending": "a participle: the points that are pending",
    "_Pending": "a participle: a content that is pending",
    "AddPending": "an effect; ends in the participle",
    "RemovePending": "an effect; ends in the participle",
    "OrString": "ends in String",
    "Scoring": "the service that scores; `Scorer` is one rule",
}
"""Classes whose names end in -ing, and why."""

PREDICATE = re.compile(r"^_*(is|has|can|was|should|must|are)_|^_*[a-z]+s(_|$)")
"""The beginning of a name that answers a boolean: `is_`, `has_` and the like, or a verb as in `lacks_snapshot`, `_follows`."""
NO_PREDICATES = {
    "contextual": "the protocol of policies, and the field of the answers",
    "succeeded": "the protocol of policies",
    "squared": "the loss is about the squared kernel",
    "unit_norm": "the protocol of embedders, and the field of the answers",
    "shared": "the protocol of storages",
    "available": "the field of the answers",
    "importable": "an adjective that ends in -able",
    "any_active": "reads as a question: any active?",
    "changed": "a comparison of two heads: was.changed(now)",
    "running": "a participle: server.running",
    "_expected": "a participle: the failure was expected",
    "_serve_one": "an action; false once there is nothing left to do",
    "_look_at": "an action; true where the request was refused",
    "swap_record": "an action; false where another record was found",
    "write": "an action; false where another process has written meanwhile",
    "_unload": "an action; false where the bandit stays",
    "rewrite": "an action; false where the record is of another process by now",
    "_resume": "an action; false where there is nothing to resume",
    "take_worker": "an action; false where there is nothing to start",
    "leave_worker": "an action; false where there is more to do",
    "record_answer": "an action; true where it is news",
    "record_failure": "an action; true where it is news",
    "_resume_from": "an action; false where there is nothing to resume",
}
"""Functions that answer a boolean under another name, and why."""

UNSAID = re.compile(r"(See|Of) |[a-z_]+: ")
"""First lines of a docstring that say where to look, or begin with a field, and not what the thing is."""

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
    for package in ("bandits", "service", "clients", "bench", "examples", "tools", "tests"):
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


def definitions(*packages: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(file:line, node) of every class and function in these packages."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}", node


def test_an_exception_from_the_limit_of_complexity_says_why() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for paths in FOLDERS.values()
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"# noqa:[^-(]*C901", line) and not re.search(r"C901[^-]* - \w", line)
    ]
    assert silent == [], "write `# noqa: C901 - why it stays whole` beside the function"


def test_a_public_class_says_what_it_is() -> None:
    unsaid = []
    for where, node in definitions("bandits", "service", "clients", "tools"):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            docstring = ast.get_docstring(node)
            if not docstring or UNSAID.match(docstring):
                unsaid.append(where)
    assert unsaid == [], "begin the docstring of the class in this file with what the thing is"


def test_a_class_is_named_for_a_thing() -> None:
    classes = [
        (where, node) for where, node in definitions("bandits", "service", "clients", "tools") if isinstance(node, ast.ClassDef)
    ]
    gerunds = [where for where, node in classes if node.name.endswith("ing") and node.name not in GERUNDS]
    assert gerunds == [], "name the class in this file by a noun, or give a reason in GERUNDS"
    assert GERUNDS.keys() <= {node.name for _, node in classes}, "take out of GERUNDS what is gone"


def test_a_function_that_answers_a_boolean_is_named_as_a_question() -> None:
    found, unclear = set(), []
    for where, node in definitions("bandits", "service", "clients", "tools"):
        if isinstance(node, ast.ClassDef) or node.returns is None or ast.unparse(node.returns) != "bool":
            continue
        found.add(node.name)
        if not (node.name.startswith("__") or PREDICATE.match(node.name) or node.name in NO_PREDICATES):
            unclear.append(where)
    assert unclear == [], "begin the name in this file with is_ or has_, or give a reason in NO_PREDICATES"
    assert NO_PREDICATES.keys() <= found, "take out of NO_PREDICATES what is gone"


# -- extension points: what must come with a new one, and where ---------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_comes_with_an_example_and_a_page(kind: str) -> None:
    assert EXAMPLES.get(kind), "add an Example to tests/bandits/examples.py"
    page = ROOT / "docs" / "policies" / f"{kind}.md"
    page = page if page.exists() else page.with_name("baselines.md")
    assert f"<!-- hyperparameters {kind} -->" in page.read_text(), f"put its markers into docs/policies/{page.name}"
    recorded = (ROOT / "tests" / "service" / "recorded_logs.py").read_text()
    assert f'"{kind}"' in recorded, "add a line to POLICIES in tests/service/recorded_logs.py"


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_comes_with_a_row_and_declared_parameters(name: str) -> None:
    rows = (ROOT / "docs" / "embedders.md").read_text()
    assert f"| `{name}` |" in rows, "add a row to the table of scorers in docs/embedders.md"
    for field, parameter in SCORERS[name].parameters.items():
        assert parameter.doc, f"say what {field} means in service/scorers/registry.py"


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_comes_with_rows_and_a_test(name: str) -> None:
    rows = (ROOT / "docs" / "embedders.md").read_text()
    assert f"| `{name}`" in rows, "add a row to each table of docs/embedders.md"
    assert f'"{name}' in (ROOT / "tests" / "service" / "embedders" / "test_registry.py").read_text(), (
        "add it to the table of promises in tests/service/embedders/test_registry.py"
    )


def test_a_storage_runs_the_contract_suite_and_can_be_configured() -> None:
    names = [
        node.name
        for _, node in definitions("service/storage")
        if isinstance(node, ast.ClassDef) and node.name.endswith("Storage") and node.name != "Storage"
    ]
    assert len(names) >= 3
    for file, what in (("tests/service/storages.py", "STORAGES"), ("service/settings.py", "open_storage")):
        text = (ROOT / file).read_text()
        assert [name for name in names if name not in text] == [], f"add it to {what} in {file}"


def test_an_extra_is_installed_in_one_way() -> None:
    """In a checkout, by its own pins: no package index has nextarm."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = re.search(r"## Without `make`.*?\n## ", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    assert table is not None
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", table[0], re.MULTILINE)))) == set(extras)
    texts = {path: path.read_text() for path in [*PAGES, *(ROOT / "service").rglob("*.py")]}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if re.search(r"\bnextarm\[", text)] == []
    named = {extra for text in texts.values() for extra in re.findall(r"""install_hint\(['"](\w+)['"]\)""", text)}
    assert len(named) >= 6
    assert named <= set(extras)
    assert install_hint("dask") in texts[ROOT / "docs" / "evaluation.md"]
    assert install_hint("text,redis").replace("txt ", "txt ./clients/python ") in table[0]


NOT_IMPERATIVE = re.compile(
    r"^(?!(Feed|Embed|Need|Speed|Exceed|Shed|Bring|String|Ring)\b)\w+(ed|ing)\b|^(Adds|Fixes|Makes|Removes|Updates|Changes)\b"
)


def test_commit_subjects_are_in_the_imperative() -> None:
    found = subprocess.run(["git", "-C", ROOT, "log", "-50", "--no-merges", "--format=%s"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("this is no checkout")
    wrong = [subject for subject in found.stdout.splitlines() if NOT_IMPERATIVE.match(subject)]
    assert not wrong, "say what the commit does when it is applied: `Add ...`, not `Added ...`"
