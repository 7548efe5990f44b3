"""Writes the tables of the README that follow from the code between their markers: `python -m bench.readme`."""

from __future__ import annotations

import re
from pathlib import Path

from bandits.registry import POLICIES
from service.settings import Settings

README = Path(__file__).resolve().parents[1] / "README.md"


def policy_rows() -> str:
    """One row per policy, from the registry."""
    rows = ["| `policy.kind` | what it does | an outcome must carry |", "| --- | --- | --- |"]
    for kind, policy in POLICIES.items():
        carried = ", ".join(f"`{need}`" for need in sorted(policy.needs - {"features"})) or "nothing"
        rows.append(f"| `{kind}` | {policy.summary} | {carried} |")
    return "\n".join(rows)


def setting_rows() -> str:
    """One row per setting, from the settings class."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default == "" else f"`{field.default}`"
        rows.append(f"| `NEXTARM_{name.upper()}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


TABLES = {"policies": policy_rows, "settings": setting_rows}


def filled(text: str) -> str:
    """The README with every generated table brought up to date."""
    for name, rows in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda match, rows=rows: match[1] + rows() + match[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"README.md must hold the markers of {name} once")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
