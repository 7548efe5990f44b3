"""The recorded tables, prepared for a replay, hold what is said of them. Skipped where they are absent."""

from pathlib import Path

import numpy as np
import pytest

from service.cli.replay.layouts import Columns
from service.cli.replay.player import Run
from service.cli.replay.report import Report, summarise
from service.cli.replay.tables import read_table
from tests.tables import shared_table
from tools.recorded_tables import coderouterbench, hash_features, humaneval, mmlu_pro


def yardsticks(path: Path, **options: object) -> Report:
    table = read_table(path, **options)  # type: ignore[arg-type]
    order = np.arange(len(table.prompts))
    return summarise(table, [Run(label="first arm", seed=0, order=order, picks=np.zeros(len(order), dtype=np.int64))])


def check(report: Report, rewards: dict[str, float]) -> None:
    for label, reward in rewards.items():
        assert report.line(label).reward.mean == pytest.approx(reward, abs=5e-4), label


def test_humaneval_has_the_golden_rounds(tmp_path: Path) -> None:
    report = yardsticks(humaneval(shared_table("humaneval_pair").parent, tmp_path), columns=Columns(group="kind"))
    assert report.table.rewards.sum(axis=0).tolist() == [1547.0, 1665.0]  # golden G6, R_sum
    check(report, {"best fixed: qwen-plus": 0.83535, "best per group (2)": 0.86755, "per-prompt oracle": 0.91340})
    assert report.line("best fixed").best_share.mean == pytest.approx(0.819)
    assert report.line("per-prompt").shares["gemini-2.5-flash"] == pytest.approx(0.5755)


def test_hashed_features_are_the_golden_ones() -> None:
    prompts = np.load(shared_table("humaneval_pair") / "labels.npz")["prompts"]
    head = hash_features([str(prompts[0])])[0, :6]
    np.testing.assert_allclose(head, [0.0, 0.0, -0.1267470303621951, 0.0422490101207317, 0.0, 0.0], atol=1e-12)  # golden G6


def test_coderouterbench_by_score_and_cost(tmp_path: Path) -> None:
    path = coderouterbench(shared_table("coderouterbench").parent, tmp_path)
    columns = Columns(one_hot="dimension", group="dimension")
    report = yardsticks(path, reward="score - 5*cost", columns=columns)
    check(report, {"best fixed: Qwen3-Max": 0.394, "best per group (9)": 0.497, "per-prompt oracle": 0.591})
    report = yardsticks(path, columns=columns)
    check(report, {"uniformly": 0.393, "best fixed: claude-opus-4-6": 0.438, "best per group": 0.517, "per-prompt": 0.600})


def test_mmlu_pro_with_ten_chat_models(tmp_path: Path) -> None:
    report = yardsticks(mmlu_pro(shared_table("mmlu_pro").parent, tmp_path), columns=Columns(group="category"))
    assert len(report.table.prompts) == len(report.table.texts) == 11_969
    check(report, {"uniformly": 0.5005, "best fixed: gemini-1.5-pro-002": 0.7025})
    check(report, {"best per group (14)": 0.719, "per-prompt": 0.902})
