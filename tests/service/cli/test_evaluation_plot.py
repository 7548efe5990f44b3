"""The plot of an evaluation says what its table says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.cli.evaluation_plot import save_plot
from tests.service.cli.test_evaluate import EPSILON, exported


def row(label: str, value: float | None, verdict: str, *, reach: float = 0.1, anytime: float | None = None) -> dict[str, Any]:
    def pair(reach: float) -> list[float | None]:
        return [None, None] if value is None else [value - reach, value + reach]

    return {
        "label": label,
        "value": value,
        "interval": pair(reach),
        "anytime_interval": None if anytime is None else pair(anytime),
        "verdict": verdict,
    }


ROWS = [
    row("unknown", 9.0, "cannot_answer", reach=5.0),
    row("best <&> $x$", 0.8, "answer", anytime=0.2),
    row("as logged", 0.7, "answer", anytime=0.15),
    row("worse", 0.5, "wide", anytime=0.3),
    row("never drawn", None, "cannot_answer"),
]
RESULTS = {"bandit": "router", "decisions": 1234, "estimator": "snips", "confidence": 0.95, "behaviour": ROWS[2]}


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_every_policy_stands_there_and_what_is_not_known_below(tmp_path: Path) -> None:
    save_plot(tmp_path / "plot.svg", RESULTS, ROWS)
    found = texts(tmp_path / "plot.svg")
    labels = [text for text in found if text in {row["label"] for row in ROWS}]
    assert labels == ["best <&> $x$", "as logged", "worse", "unknown"]
    assert {"answer", "wide", "cannot answer", "ordinary interval, 95 %", "anytime interval, 95 %"} <= set(found)
    assert "bounded" not in found
    assert "router: 1,234 decisions with a reward" in found
    numbers = [float(text.replace("−", "-")) for text in found if re.fullmatch(r"−?\d+\.\d+", text)]
    assert max(numbers) < 1.2, "what cannot be said does not set the scale"


def test_the_command_draws_and_refuses_before_it_reads(tmp_path: Path) -> None:
    log = asyncio.run(exported(tmp_path, EPSILON))

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["evaluate", str(log), "--quiet", "--plot", *map(str, words)])
        return result.exit_code, result.output

    code, output = run(tmp_path / "plot.png", "--reward-range", 0, 1)
    assert code == 0, output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "exists" in run(tmp_path / "plot.png")[1]
    assert run(tmp_path / "plot.png", "--force")[0] == 0
    assert "must end in .png, .svg, .pdf" in run(tmp_path / "plot.jpeg")[1]
    assert "there is no folder" in run(tmp_path / "none" / "plot.png")[1]


@pytest.mark.parametrize("verdict", ["bounded", "cannot_answer"])
def test_a_log_of_one_kind_of_verdict_is_drawn(tmp_path: Path, verdict: str) -> None:
    one = row("as logged", 0.5, verdict, reach=0.0)
    save_plot(tmp_path / "plot.svg", {**RESULTS, "behaviour": one}, [one])
    assert verdict.replace("_", " ") in texts(tmp_path / "plot.svg")
