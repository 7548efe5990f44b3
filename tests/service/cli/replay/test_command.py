import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli.replay.command import replay
from service.cli.replay.player import Api
from tests.tables import shared_table

TABLE = "id,prompt,kind,small,large,cost:small,cost:large\n" + "".join(
    f"{i},Question number {i},{'odd' if i % 2 else 'even'},{i % 2},0.6,0.01,0.05\n" for i in range(24)
)


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(replay, [str(argument) for argument in arguments], prog_name="nextarm replay")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    return path


def test_a_replay_ends_in_a_table_a_plot_and_results(api: Api, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = call(
        table, "--policy", "pak-ucb,greedy", "--set", "random_features=16", "--reward", "score - 2*cost", "--seeds", "3,5",
        "--vector-from", "kind", "--rounds", "30", "--url", api.url, "--out", out, "--quiet",
    )  # fmt: skip
    assert code == 0, output
    assert "t.csv: 2 models, 30 rounds, 2 seeds" in output
    assert str(out / "plot.png") in output
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [3, 5]
    assert results["prices"] == pytest.approx({"small": 0.01, "large": 0.05})
    assert results["arms"]["large"]["mean_reward"] == pytest.approx(0.5)
    assert [line["label"] for line in results["lines"] if not line["baseline"]] == ["pak-ucb", "greedy"]
    assert results["policies"]["pak-ucb"] == {"kind": "pak-ucb", "random_features": 16}
    assert results["notes"] == ["reward: score - 2*cost", "set for all that have it: random_features=16"]
    assert (out / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize("kept", ["results.json", "plot.png"])
def test_an_earlier_replay_is_overwritten_only_with_force(api: Api, table: Path, tmp_path: Path, kept: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / kept).write_bytes(b"earlier")
    arguments = (table, "--policy", "greedy", "--rounds", "3", "--url", api.url, "--out", out, "--quiet")
    code, output = call(*arguments)
    assert code == 1
    assert f"{out / kept} exists; name another folder by --out, or give --force" in output
    assert [path.name for path in out.iterdir()] == [kept], "and nothing was played"
    assert (out / kept).read_bytes() == b"earlier"
    code, output = call(*arguments, "--force")
    assert code == 0, output
    assert json.loads((out / "results.json").read_text())["seeds"] == [0]
    assert "kept:" not in output


def test_a_bandit_that_is_kept_is_named(api: Api, table: Path, tmp_path: Path) -> None:
    code, output = call(
        table, "--policy", "greedy", "--rounds", "3", "--url", api.url, "--keep", "--out", tmp_path / "out", "--quiet"
    )
    assert code == 0, output
    (name,) = re.findall(r"^kept: (\S+)$", output, re.MULTILINE)
    assert api.call("GET", f"/v1/bandits/{name}")["decisions"] == 3
    api.call("DELETE", f"/v1/bandits/{name}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reward", "score +"], "is not an arithmetic expression"),
        (["--reward", "score - price"], "reads 'price', which is not a column"),
        (["--seeds", "many"], "number of seeds"),
        (["--seeds", "0"], "1 to 1000 seeds"),
        (["--rounds", "0"], "--rounds"),
        (["--models", "small,huge"], "there is no model 'huge'"),
        (["--vector-from", "colour"], "there is no column 'colour'"),
        (["--layout", "long"], "name the column of the model"),
        (["--keep"], "--keep needs --url"),
        (["--url", "localhost:8000"], "must start with http"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(table: Path, options: list[str], says: str) -> None:
    code, output = call(table, *options)
    assert code == 2
    assert says in output
    assert "Traceback" not in output


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert call(tmp_path / "nothing.csv") == (2, "nextarm: nothing.csv cannot be read: No such file or directory\n")
    code, output = call(tmp_path)
    assert code == 2
    assert output.endswith("cannot be read: Is a directory\n")


def test_a_server_that_is_not_there_is_exit_code_1_and_one_line(table: Path) -> None:
    code, output = call(table, "--url", "http://127.0.0.1:9")
    assert code == 1
    assert output.startswith("nextarm: cannot reach http://127.0.0.1:9")
    assert output.count("\n") == 1


def test_what_the_server_refuses_is_exit_code_1_and_one_line(api: Api, table: Path) -> None:
    code, output = call(table, "--url", api.url, "--policy", "pak-ucb:ridge=-1", "--vector-from", "kind", "--quiet")
    assert code == 1
    assert "422: invalid_request" in output
    assert "ridge" in output
    assert output.count("\n") == 1


def test_help_shows_every_option() -> None:
    code, output = call("--help")
    assert code == 0
    assert "--reward" in output
    assert "Example: nextarm replay" in output


@pytest.mark.parametrize(
    ("settings", "head"),
    [
        ("exploration=0.3:prior_mean=1", "010000001111111111101111110011101011100000110011000001001111"),
        ("exploration=1:prior_mean=0:ridge=0.1", "010001001110011111101011110011110011100101010011000010001111"),
    ],
)
def test_the_recorded_programming_tasks_give_the_golden_picks(api: Api, tmp_path: Path, settings: str, head: str) -> None:
    """Golden G6: the first 60 picks of the random-feature policy with D = 100 and seed 11, here over HTTP."""
    from service.cli.replay.contenders import contenders, offered
    from service.cli.replay.player import Plan, play_all
    from service.cli.replay.tables import read_table
    from tools.recorded_tables import humaneval

    path = humaneval(shared_table("humaneval_pair").parent, tmp_path)
    recorded = read_table(path)
    assert recorded.rewards.sum(axis=0).tolist() == [1547.0, 1665.0]
    players = contenders([f"pak-ucb:random_features=100:{settings}"], settings=(), objects=(), known=offered(api))
    plan = Plan(rounds=60, seeds=(0,), embedder="vector", prices=(0.0, 0.0), shuffle=False, bandit_seed=11)
    (run,) = play_all(api, recorded, players, plan)
    assert "".join(map(str, run.picks)) == head
