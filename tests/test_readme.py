"""The README says what is so: its commands work as pasted, its tables follow from the code, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bench import readme
from service.replay.server import private_server

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"<!-- tested -->\n```bash\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_tables_are_what_the_code_says() -> None:
    assert readme.filled(TEXT) == TEXT, "run: .venv/bin/python -m bench.readme"


def test_the_commands_work_as_pasted() -> None:
    assert len(BLOCKS) >= 5
    with private_server() as url:
        for block in BLOCKS:
            script = block.replace("localhost:8000", url.removeprefix("http://")).replace("curl -s", "curl -sS --fail-with-body")
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:bandits|service|bench|tests|docs)/[\w/.-]+)`", TEXT))))
def test_every_file_that_is_named_exists(path: str) -> None:
    if path != "bandits/policies/yours.py":
        assert (ROOT / path).exists()
