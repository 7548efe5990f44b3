"""`nextarm import` on a real service: what it reads, what it sends, what it says of a wrong row, and that it can be repeated."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from service.__main__ import main
from service.cli.import_history import parse_mapping
from service.cli.replay.errors import BadInput
from service.cli.replay.run import serving

ARMS = [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}]
NUMBERS = itertools.count()
PLAIN = {"policy": {"kind": "greedy"}, "arms": ARMS, "signals": ["latency_s"], "seed": 7}
VECTORS = {"arms": ARMS, "prompt": {"dim": 2}, "seed": 7}


class Bandit:
    """A new bandit of the shared service."""

    def __init__(self, url: str, name: str, body: dict[str, Any]) -> None:
        self.url, self.name = url, name
        assert self.ask("PUT", "", body).status_code == 201

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return httpx.request(method, f"{self.url}/v1/bandits/{self.name}{path}", json=body, trust_env=False)

    def load(self, path: Path, *options: str) -> Result:
        words = ["import", str(path), "--bandit", self.name, "--url", self.url, "--quiet", *options]
        return CliRunner().invoke(main, words)

    def rows(self) -> list[dict[str, Any]]:
        lines = self.ask("GET", "/log").text.splitlines()
        return [event for line in lines if (event := json.loads(line))["event"] == "imported"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("") as api:
        yield api.url


@pytest.fixture
def bandit(url: str) -> Callable[[dict[str, Any]], Bandit]:
    return lambda body: Bandit(url, f"b{next(NUMBERS)}", body)


CSV = """question,model,score,cost,latency,team
what is 2+2?,small,1,,0.5,a
what is 2+2?,large,0,3.5,,b
translate,large,0.5,3.5,0.25,
translate,large,0.5,3.5,0.25,
"""


def test_a_csv_is_learned_once_under_usual_and_given_names(tmp_path: Path, bandit: Any) -> None:
    b, file = bandit(PLAIN), tmp_path / "history.csv"
    file.write_text(CSV)
    names = ("--map", "latency=signals.latency_s", "--map", "team=metadata.team")
    done = b.load(file, *names)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "4 rows learned, 0 known before; the log is at offset 5\n"
    rows = b.rows()
    shown = [(row["arm"], row["reward"], row["cost"], row.get("signals"), row.get("metadata")) for row in rows]
    assert shown == [
        (0, 1.0, 0.25, {"latency_s": 0.5}, {"team": "a"}),
        (1, 0.0, 3.5, None, {"team": "b"}),
        (1, 0.5, 3.5, {"latency_s": 0.25}, None),
        (1, 0.5, 3.5, {"latency_s": 0.25}, None),
    ]
    assert b.load(file, *names).stdout == "0 rows learned, 4 known before; the log is at offset 5\n"
    file.write_text(CSV + "translate,small,0.75,,,\n")
    assert b.load(file, *names).stdout == "1 rows learned, 4 known before; the log is at offset 6\n"
    other = tmp_path / "february.csv"
    other.write_text(CSV)
    assert "4 rows learned, 0 known" in b.load(other, *names).stdout, "rows of another file are other rows"


ROWS: list[dict[str, Any]] = [
    {"id": "r0", "arm": "small", "prompt": {"vector": [0.5, 1.0]}, "reward": 0.5, "weights": {"small": 0.25, "large": 0.75}},
    {"id": "r1", "arm": "large", "prompt": [1.5, -1.0], "reward": True, "propensity": 0.5, "at": "2026-01-01T00:00:00Z"},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_gzipped(path: Path) -> None:
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS))


def write_parquet(path: Path) -> None:
    vectors = [[0.5, 1.0], [1.5, -1.0]]
    columns = {
        "id": ["r0", "r1"],
        "arm": ["small", "large"],
        "embedding": vectors,
        "reward": [0.5, 1.0],
        "propensity": [0.25, 0.5],
        "weights": ['{"small": 0.25, "large": 0.75}', None],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize(
    ("name", "write"), [("rows.jsonl", write_jsonl), ("rows.jsonl.gz", write_gzipped), ("rows.parquet", write_parquet)]
)
def test_vectors_and_propensities_come_from_every_format(name: str, write: Any, tmp_path: Path, bandit: Any) -> None:
    b = bandit(VECTORS)
    write(tmp_path / name)
    done = b.load(tmp_path / name)
    assert done.exit_code == 0, done.stderr
    rows = b.rows()
    assert [struct.unpack("<2f", b64decode(row["features"])) for row in rows] == [(0.5, 1.0), (1.5, -1.0)]
    assert [(row["id"], row["reward"], row["propensity"], row.get("weights")) for row in rows] == [
        ("r0", 0.5, 0.25, [0.25, 0.75]),
        ("r1", 1.0, 0.5, None),
    ]


def test_a_wrong_row_is_named_by_its_line_and_the_mended_file_goes_on(tmp_path: Path, bandit: Any) -> None:
    b, file = bandit(PLAIN), tmp_path / "history.csv"
    lines = ["arm,score"] + [f"{'small' if i % 2 else 'large'},{i / 4000}" for i in range(2500)]
    file.write_text("\n".join([*lines[:2201], "medium,0.5", *lines[2202:]]))
    failed = b.load(file)
    assert failed.exit_code == 2
    assert failed.stderr.startswith("nextarm: history.csv: line 2202: arm is no arm of this bandit")
    assert "2,048 rows before are learned" in failed.stderr
    assert len(b.rows()) == 2048
    file.write_text("\n".join(lines))
    assert "452 rows learned, 2,048 known before" in b.load(file).stdout
    assert [row["reward"] for row in b.rows()] == [i / 4000 for i in range(2500)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arm,score\nsmall,1\nsmall,high\n", "line 3: score is not a number"),
        ("arm,score\nsmall,1\nsmall,1,2\n", "line 3 has 3 cells under 2 columns"),
        ("arm,score\nsmall,1e13\n", "line 2: reward must be at most 1e+12"),
        ("arm,score,propensity\nsmall,1,0\n", "line 2: propensity must be greater than 0"),
        ("arm,score,at\nsmall,1,2026-01-01\n", "line 2: at has no time zone"),
        ("arm,score,weights\nsmall,1,half\n", "line 2: weights is not JSON"),
        ("arm,score\n", "has no rows"),
        ("llm_name,score\nsmall,1\n", "no column is the arm"),
        ('{"arm": "small", "reward": 1}\n{"arm": "small", "rew', "line 2 is not JSON"),
        ('{"arm": "small", "reward": 1, "id": "x"}\n{"arm": "small", "reward": 1, "id": "x"}\n', "line 2: id is that of rows.0"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(text: str, said: str, tmp_path: Path, bandit: Any) -> None:
    b, file = bandit(PLAIN), tmp_path / "history.csv"
    file.write_text(text)
    failed = b.load(file)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert said in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not b.rows()


def test_a_mapping_says_what_is_wrong_with_it(tmp_path: Path, bandit: Any) -> None:
    for pairs, said in (
        (["arm"], "is not COLUMN=FIELD"),
        (["a=rewrd"], "is no field"),
        (["a=reward", "a=cost"], "twice"),
        (["a=reward", "b=reward"], "two columns"),
    ):
        with pytest.raises(BadInput, match=said):
            parse_mapping(pairs)
    file = tmp_path / "history.csv"
    file.write_text("arm,score\nsmall,1\n")
    assert "'nope', which is not a column" in bandit(PLAIN).load(file, "--map", "nope=cost").stderr


def test_a_service_that_is_not_there_or_has_no_such_bandit_is_one_line(tmp_path: Path, url: str) -> None:
    file = tmp_path / "history.csv"
    file.write_text("arm,score\nsmall,1\n")
    for options, said in ((["--url", "http://127.0.0.1:9"], "cannot reach"), (["--url", url], "bandit_not_found")):
        failed = CliRunner().invoke(main, ["import", str(file), "--bandit", "nobody", "--quiet", *options])
        assert failed.exit_code == 1
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1
