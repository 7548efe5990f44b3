"""Writes the tables that follow from the code into README.md and docs/, between their markers: `python -m tools.readme`.

<!-- settings --> stands in docs/settings.md, <!-- routes --> in docs/api.md, <!-- policies --> in docs/policies/index.md,
<!-- hyperparameters KIND --> where a page describes a policy, <!-- pays --> in the README: rows of the table of auto.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from bandits.hyperparameters import Declared, Hyperparameter, declared
from bandits.registry import POLICIES
from service.api.app import running
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAYS = ("auto", "pak-ucb", "lin-ucb", "thompson", "greedy", "best fixed model, known beforehand")
"""Rows of the table of `auto` that the README shows."""
TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", type(None): "null"}


def pages() -> list[Path]:
    """The pages beside README.md, and everything in docs/."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def page_of(kind: str) -> str:
    """The page of a policy in docs/policies; the baselines share one."""
    own = f"{kind}.md"
    return own if (ROOT / "docs" / "policies" / own).is_file() else f"baselines.md#{kind}"


# -- the tables ------------------------------------------------------------------------------------------------------------


def policy_rows() -> str:
    """One row per policy, from the registry. A cost is never obligatory: the arm's price stands for it."""
    rows = ["| `policy.kind` | what it does | an outcome must carry |", "| --- | --- | --- |"]
    for kind, policy in POLICIES.items():
        carried = ", ".join(f"`{need}`" for need in sorted(policy.needs & {"reward", "output"}))
        rows.append(f"| [`{kind}`]({page_of(kind)}) | {_cell(policy.summary)} | {carried} |")
    return "\n".join(rows)


def setting_rows() -> str:
    """One row per setting, from the settings class."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default == "" else f"`{field.default}`"
        rows.append(f"| `NEXTARM_{name.upper()}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def route_rows() -> str:
    """One row per operation of the HTTP API, from the OpenAPI document."""
    rows = ["| request | what it does |", "| --- | --- |"]
    for path, operations in asyncio.run(_paths()).items():
        for method, operation in operations.items():
            rows.append(f"| `{method.upper()} {path}` | {_cell(operation['summary'])} |")
    return "\n".join(rows)


async def _paths() -> dict[str, dict[str, Any]]:
    async with running(Settings.load(store="memory://")) as app:
        found: dict[str, dict[str, Any]] = app.openapi()["paths"]
    return found


def pays_rows() -> str:
    """Rows of the measured table of `auto`, without what stands in brackets."""
    table = (ROOT / "docs" / "policies" / "auto.md").read_text().partition("<!-- measured rivals -->\n")[2]
    head, rule, *rows = table.partition("\n<!--")[0].splitlines()
    kept = [row for row in rows if row.split("|")[1].strip(" `") in PAYS]
    return "\n".join([head, rule, *(re.sub(r" \([.\d]+\)", "", row) for row in kept)])


def hyperparameter_rows(kind: str) -> str:
    """One row per hyperparameter of a policy, from its declarations."""
    items = declared(POLICIES[kind])
    if not items:
        return "It has no hyperparameters."
    rows = ["| name | type | default | range | meaning | source |", "| --- | --- | --- | --- | --- | --- |"]
    for item in items:
        meaning = item.facts.doc + (f" Unit: {item.facts.unit}." if item.facts.unit else "")
        cells = (f"`{item.name}`", _type(item.type), f"`{_default(item.default)}`", _range(item), meaning, item.facts.source)
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "choice"
    return " or ".join(TYPES[part] for part in (get_args(kind) if isinstance(kind, UnionType) else (kind,)))


def _default(value: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _range(item: Declared) -> str:
    if get_origin(item.type) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(item.type))
    return ", ".join(bound for bound in _bounds(item.facts) if bound)


def _bounds(facts: Hyperparameter) -> tuple[str, str]:
    least = facts.at_least if facts.sound_at_least is None else facts.sound_at_least
    low = f">= {least:g}" if least is not None else f"> {facts.above:g}" if facts.above is not None else ""
    return low, "" if facts.at_most is None else f"<= {facts.at_most:.10g}"


# -- the pages -------------------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], str]] = {
    "pays": pays_rows,
    "policies": policy_rows,
    "routes": route_rows,
    "settings": setting_rows,
    **{f"hyperparameters {kind}": partial(hyperparameter_rows, kind) for kind in POLICIES},
}
MARKED = re.compile(r"(<!-- (pays|policies|routes|settings|hyperparameters [\w-]+) -->\n)(.*?\n)?(<!-- /\2 -->)", flags=re.DOTALL)


def tables_in(text: str) -> list[str]:
    """The names of the tables that a page holds, in order."""
    return [match[2] for match in MARKED.finditer(text)]


def filled(text: str) -> str:
    """A page with every generated table brought up to date; `SystemExit` for a marker that nothing belongs to."""
    for name in tables_in(text):
        if name not in TABLES:
            raise SystemExit(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[4]}", text)


if __name__ == "__main__":
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(ROOT)}")
