"""The stand-in for a provider, and the page that plays it without a key."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest

from examples.upstream import app, reply, text_of, tokens
from service.api.app import running
from service.settings import Settings
from tests.service.api.facade.conftest import served
from tools.processes import ROOT

SECTION = (ROOT / "docs" / "openai.md").read_text().partition("## Without a key\n")[2].partition("\n## ")[0]
OFFLINE = (ROOT / "examples" / "upstreams_offline.toml").read_text()


def test_each_model_knows_what_the_table_says() -> None:
    sums, capitals = "What is 17 plus 25?", "And the capital of Peru?"
    said = {
        model: ("42" in reply(model, sums), "Lima" in reply(model, capitals))
        for model in ("abacus", "atlas", "polymath", "gpt-5")
    }
    assert said == {"abacus": (True, False), "atlas": (False, True), "polymath": (True, True), "gpt-5": (True, True)}
    assert reply("abacus", "Write a poem") == reply("abacus", "") == "I do not know."
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "17 plus"}, {"type": "input_image"}, "25"]}]
    assert text_of(parts).split() == ["17", "plus", "25"]


async def test_the_page_plays_it_with_the_file_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks as they stand there, on ports of this test: every answer is learned with what it was worth and what it cost."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NEXTARM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    prices = {name: arm["prices"]["output"] for name, arm in tomllib.loads(OFFLINE)["arms"].items()}
    start, create, play = re.findall(r"^```(?:bash|python)\n(.*?)^```", SECTION, flags=re.DOTALL | re.MULTILINE)
    assert "examples.upstream " in start
    assert "=examples/upstreams_offline.toml " in start
    upstreams = tmp_path / "upstreams.toml"
    async with served(app) as provider:
        upstreams.write_text(OFFLINE.replace("http://127.0.0.1:9100", provider))
        async with (
            running(Settings.load(store="memory://", sweep_s=3600.0, upstreams=str(upstreams))) as service,
            served(service) as url,
        ):
            await run(["bash", "-euo", "pipefail", "-c", create.replace("curl -s", "curl -sS --fail-with-body")], url)
            shown = (await run([sys.executable, "-c", play.replace("range(8)", "range(2)")], url)).splitlines()
            async with httpx2.AsyncClient(base_url=url) as client:
                page = (await client.get("/v1/bandits/offline/decisions", params={"limit": 200})).json()
    expected = []
    for line in shown:
        asked = re.fullmatch(r"(\w+) (.*\?) (.*)", line)
        assert asked is not None
        arm, question, answer = asked.groups()
        assert answer == reply(arm, question)
        knows = arm == "polymath" or arm == ("abacus" if "plus" in question else "atlas")
        expected.append((arm, float(knows), pytest.approx(prices[arm] * (tokens(question) + tokens(answer)))))
    assert len(expected) == 2 * 13
    assert {arm for arm, _, _ in expected} == set(prices)
    assert [(found["arm"], found["reward"], found["cost"]) for found in reversed(page["decisions"])] == expected


async def run(command: list[str], url: str) -> str:
    """What a command of the page prints, with the service at another place."""
    made = [part.replace("localhost:8000", url.removeprefix("http://")) for part in command]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "clients" / "python" / "src")))
    running = await asyncio.create_subprocess_exec(
        *made, env={**os.environ, "PYTHONPATH": path}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await running.communicate()
    assert running.returncode == 0, err.decode()
    return out.decode()
