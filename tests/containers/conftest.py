"""An engine, the image, and a record of what was seen, which is printed at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.record import SEEN, say
from tests.deploy.files import ROOT, document
from tools.containers import IMAGE, Engine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was seen, with times in UTC."""
    terminalreporter.section("what was seen", sep="-")
    for line in SEEN:
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """It runs at a low priority. CONTAINERS_FOLDER: where images are kept for the next time."""
    os.nice(10)
    kept = os.environ.get("CONTAINERS_FOLDER")
    folder = Path(kept or tempfile.mkdtemp(prefix="nextarm-containers-"))
    with Engine(folder, keeps=kept is not None, say=say) as engine:
        versions = engine.docker("version", "--format", "{{.Server.Version}}").strip()
        compose = engine.compose("version", "--short", environment={}).strip()
        say(f"docker {versions}, compose {compose}; {'no registry answers' if engine.stands_in else 'images are pulled'}")
        yield engine


@pytest.fixture(scope="session")
def missing(engine: Engine) -> list[str]:
    """Images that can be neither pulled nor stood in for."""
    services = document(ROOT / "docker-compose.yml")["services"].values()
    names = sorted({service["image"] for service in services} - {IMAGE})
    text = (ROOT / "Dockerfile").read_text()
    tag = text[text.index("ARG PYTHON=") :].splitlines()[0].partition("=")[2]
    return engine.prepare_images(names, python=f"python:{tag}")


@pytest.fixture(scope="session")
def image(engine: Engine, missing: list[str]) -> str:
    """The service's image, built from the Dockerfile."""
    say(f"the image was built in {engine.build():.0f} s, {size_mib(engine)} MiB")
    return IMAGE


def size_mib(engine: Engine) -> int:
    return int(engine.docker("image", "inspect", IMAGE, "--format", "{{.Size}}")) // 2**20
