"""Which defaults should PAK-UCB have? One setting at a time, over a synthetic world and three recorded tables, several seeds.

    python -m bench.experiments.defaults.tables            about twenty minutes on two cores; results are kept as they come
    python -m bench.experiments.defaults.tables --write    then writes the tables of docs/defaults.md and docs/choosing.md

Every setting plays the same orders of the same prompts by `bandits.simulation`, without HTTP. A cell is the mean reward over the
seeds; `won` is the share of what knowing each prompt's group would win over the best fixed arm, averaged over the worlds.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from bandits.registry import build
from bandits.simulation import World, simulate
from bench.experiments.defaults.pages import choosing, ranked
from bench.pages import show, write
from tools.recorded_tables import CHAT_MODELS, DATA
from tools.simulated_tasks.contextual import GroupedWorld, prompt_clusters, recorded_answers

BASE: dict[str, Any] = {"prior_mean": 1.0, "exploration": 1.0, "ridge": 1.0, "random_features": 128, "bandwidth": 1.0}

SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    **{
        f"prior_mean={r} exploration={e}": {"prior_mean": r, "exploration": e}
        for r in (0.0, 0.5, 1.0)
        for e in (0.0, 0.1, 0.3, 1.0)
    },
    "ridge=0.1": {"ridge": 0.1},
    "ridge=10": {"ridge": 10.0},
    "exploration=0.1 ridge=0.1": {"exploration": 0.1, "ridge": 0.1},
    "exploration=0.1 ridge=10": {"exploration": 0.1, "ridge": 10.0},
    "exploration=0.1 random_features=64": {"exploration": 0.1, "random_features": 64},
    "exploration=0.1 random_features=256": {"exploration": 0.1, "random_features": 256},
    "exploration=0.1 bandwidth=0.5": {"exploration": 0.1, "bandwidth": 0.5},
    "exploration=0.1 bandwidth=2": {"exploration": 0.1, "bandwidth": 2.0},
    "exploration=0.1 bandwidth=median": {"exploration": 0.1, "bandwidth": "median"},
    "exploration=0.1 add_linear": {"exploration": 0.1, "add_linear": True},
}
del SETTINGS["prior_mean=1.0 exploration=1.0"]

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lin-ucb": ("lin-ucb", {}),
    "lin-ucb exploration=0.1": ("lin-ucb", {"exploration": 0.1}),
    "greedy": ("greedy", {}),
    "epsilon-greedy": ("epsilon-greedy", {}),
    "random": ("random", {}),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Prompts x arms. features (n, d), rewards and expected (n, K), group (n,), rounds to play, whether rows repeat."""

    features: np.ndarray
    rewards: np.ndarray
    expected: np.ndarray
    group: np.ndarray
    rounds: int
    in_order: bool = False

    def world(self, seed: int) -> World:
        """The rounds of one seed: a random order of the prompts."""
        rng = np.random.default_rng(seed)
        order = np.arange(self.rounds) if self.in_order else rng.permutation(len(self.rewards))[: self.rounds]
        if self.in_order and seed:  # recorded draws: another seed is another order of the same rounds
            order = rng.permutation(self.rounds)
        return World(features=self.features[order], rewards=self.rewards[order], expected=self.expected[order])

    @property
    def fixed(self) -> float:
        """Mean of the best fixed arm."""
        return float(self.expected.mean(axis=0).max())

    @property
    def grouped(self) -> float:
        """Mean of the best arm per group."""
        parts = [self.expected[self.group == g] for g in np.unique(self.group)]
        return float(sum(part.mean(axis=0).max() * len(part) for part in parts) / len(self.group))


def _of(world: GroupedWorld, *, rounds: int, in_order: bool = False) -> Bench:
    played = {name: getattr(world, name) for name in ("features", "rewards", "expected", "group")}
    return Bench(**played, rounds=rounds, in_order=in_order)


def clusters(data: Path) -> Bench:
    """Three clusters of prompts on the sphere in R^8, three arms, each best on one cluster (the world of golden G2)."""
    return _of(prompt_clusters(), rounds=600)


def humaneval(data: Path) -> Bench:
    """2,000 recorded draws of 328 programming tasks, two models, hashed text features."""
    return _of(recorded_answers(recorded=data), rounds=2000, in_order=True)


class CodingTasks(NamedTuple):
    """features (N, d) one-hot task family, family (N,), scores and costs in USD (N, K)."""

    features: np.ndarray
    family: np.ndarray
    scores: np.ndarray
    costs: np.ndarray


@cache
def coding_tasks(data: Path) -> CodingTasks:
    """2,919 programming tasks, eight models."""
    with gzip.open(data / "coderouterbench" / "id_test_long.csv.gz", "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    tasks, models = (list(dict.fromkeys(row[name] for row in rows)) for name in ("task_id", "model"))
    families = sorted({row["dimension"] for row in rows})
    found = {(row["task_id"], row["model"]): row for row in rows}
    family = np.array([families.index(found[task, models[0]]["dimension"]) for task in tasks])
    scores, costs = (
        np.array([[float(found[task, model][name]) for model in models] for task in tasks]) for name in ("score", "cost_usd")
    )
    return CodingTasks(np.eye(len(families))[family], family, scores, costs)


def coderouterbench(data: Path) -> Bench:
    """The coding tasks at score - 5 USD."""
    tasks = coding_tasks(data)
    rewards = tasks.scores - 5.0 * tasks.costs
    return Bench(features=tasks.features, rewards=rewards, expected=rewards, group=tasks.family, rounds=len(rewards))


def mmlu_rows(count: int) -> list[int]:
    """Which 6,000 of so many questions are used."""
    return sorted(np.random.default_rng(0).permutation(count)[:6000].tolist())


def mmlu_pro(data: Path) -> Bench:
    """5,000 of 11,969 questions, ten chat models, MiniLM embeddings of the questions."""
    from service.embedders import registry
    from service.embedders.base import TextEmbedder

    with gzip.open(data / "mmlu_pro" / "prompts.jsonl.gz", "rt") as lines:
        prompts = {str(prompt["id"]): prompt for prompt in map(json.loads, lines)}
    with gzip.open(data / "mmlu_pro" / "scores.csv.gz", "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows = [rows[i] for i in mmlu_rows(len(rows))]
    rewards = np.array([[float(row[model]) for model in CHAT_MODELS] for row in rows])
    names = np.array([prompts[row["id"]]["category"] for row in rows])
    cache = Path("out/defaults/mmlu_features.npy")
    if cache.is_file():
        features = np.load(cache)
    else:
        embedder = registry.spec("minilm").load()
        assert isinstance(embedder, TextEmbedder)
        texts = [prompts[row["id"]]["question"] for row in rows]
        features = np.concatenate([embedder.embed(texts[i : i + 32]) for i in range(0, len(texts), 32)])
        np.save(cache, features)
    return Bench(features=features.astype(np.float64), rewards=rewards, expected=rewards, group=names, rounds=5000)


BENCHES: Mapping[str, Callable[[Path], Bench]] = {
    "clusters": clusters,
    "humaneval": humaneval,
    "coderouterbench": coderouterbench,
    "mmlu_pro": mmlu_pro,
}


def median_distance(features: np.ndarray) -> float:
    """Median distance between 300 random prompts that differ."""
    rows = np.random.default_rng(0).permutation(features)[:300]
    square = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    return float(np.sqrt(np.median(square[square > 1e-9])))


def played(bench: Bench, kind: str, setting: Mapping[str, Any], seeds: int) -> list[float]:
    """Mean realised reward per seed."""
    means = []
    for seed in range(seeds):
        chosen = dict(setting)
        if chosen.get("bandwidth") == "median":
            chosen["bandwidth"] = median_distance(bench.features)
        policy = build(kind, chosen, dim=bench.features.shape[1], seed=seed)
        means.append(float(simulate(policy, bench.world(seed)).rewards.mean()))
    return means


def main() -> None:
    """Play everything that is not in the results file yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.defaults.tables", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out/defaults"))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the recorded tables")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/ as well")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    kept = chosen.out / "results.json"
    results: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    jobs = {name: ("pak-ucb", {**BASE, **setting}) for name, setting in SETTINGS.items()} | OTHERS
    benches = {name: load(chosen.data) for name, load in BENCHES.items()}
    with Progress() as progress:
        task = progress.add_task("playing", total=len(jobs) * len(benches))
        for name, bench in benches.items():
            for label, (kind, setting) in jobs.items():
                cell = results.setdefault(label, {})
                if len(cell.get(name, [])) < chosen.seeds:
                    cell[name] = played(bench, kind, setting, chosen.seeds)
                    kept.write_text(json.dumps(results, indent=1))
                progress.advance(task)
    show("mean reward (sd over seeds)", ["setting", *benches, "won"], rows(results, benches), Console(width=150))
    if chosen.write:
        write(tables(results, benches))


def tables(results: Mapping[str, Mapping[str, list[float]]], benches: Mapping[str, Bench]) -> dict[str, str]:
    """The tables for docs/, by the names of their markers."""
    known: dict[str, dict[str, float]] = {
        "fixed": {name: bench.fixed for name, bench in benches.items()},
        "grouped": {name: bench.grouped for name, bench in benches.items()},
    }
    full = ("clusters", "humaneval", "coderouterbench, score - 5 USD", "mmlu_pro, 5,000 rounds")
    plain = ("three kinds, made up", "HumanEval, 2 models", "coding tasks, 8 models", "MMLU-Pro, 10 models")
    rounds = {name: bench.rounds for name, bench in benches.items()}
    return {
        "measured pak-ucb": ranked(results, heads=dict(zip(benches, full, strict=True)), **known),
        "measured choosing": choosing(results, heads=dict(zip(benches, plain, strict=True)), rounds=rounds, **known),
    }


def rows(results: Mapping[str, Mapping[str, list[float]]], benches: Mapping[str, Bench]) -> list[list[str]]:
    """Of the table on the terminal, best first by the share won."""
    shares = {
        label: float(np.mean([(np.mean(cell[n]) - b.fixed) / (b.grouped - b.fixed) for n, b in benches.items()]))
        for label, cell in results.items()
    }
    found = [
        [
            label,
            *(f"{np.mean(results[label][n]):.3f} ({np.std(results[label][n]):.3f})" for n in benches),
            f"{shares[label]:+.2f}",
        ]
        for label in sorted(results, key=lambda label: -shares[label])
    ]
    found.append(["best fixed arm", *(f"{bench.fixed:.3f}" for bench in benches.values()), "0"])
    return [*found, ["best arm per group", *(f"{bench.grouped:.3f}" for bench in benches.values()), "+1"]]


if __name__ == "__main__":
    main()
