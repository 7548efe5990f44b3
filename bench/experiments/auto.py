"""Does `auto` pay? It beside its rivals on recorded tables, on fresh orders, paired order by order.

    python -m bench.experiments.auto                    what out/auto lacks; most important first, about an hour of two cores
    python -m bench.experiments.auto --only paired      a part: paired, scales, rivals, locks, blind, draws, batches
    python -m bench.experiments.auto --show             no runs: the tables of what is kept

Order n is `numpy.random.default_rng(n).permutation(N)` cut to the rounds, and the seed of the policy is n. Orders 0 to 99 are for
choosing, and the reports are on 500 to 507 and 508 to 515. Runs are kept as they come, one JSON line each in out/auto/runs.jsonl;
a call goes on where the last one ended. `--reference FOLDER` plays `run` of FOLDER/evidence.py beside it, an independent
implementation in plain numpy: run(X, R, order, seed, batch=1) -> picks.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandits.registry import build
from bandits.simulation import World, simulate
from bench.experiments import resumed
from bench.experiments.defaults.tables import BENCHES, Bench, mmlu_rows
from bench.pages import markdown
from tools.recorded_tables import DATA

BATCH, SAME_DRAWS = 50, "auto, draws of the reference"
SCALES = {"as it is": (1.0, 0.0), "100 r - 1000": (100.0, -1000.0), ".001 r + 5": (0.001, 5.0)}
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "auto without prompt": ("auto", {"context": False}),
    "pak-ucb": ("pak-ucb", {}),
    "lin-ucb": ("lin-ucb", {}),
    "thompson": ("thompson", {"posterior": "beta"}),
    "thompson, student": ("thompson", {"posterior": "student"}),
    "greedy": ("greedy", {}),
    "epsilon-greedy": ("epsilon-greedy", {}),
}
CODING, CHAT = range(508, 516), range(500, 508)
TABLES = {"coderouterbench": CODING, "humaneval": CODING, "mmlu_pro": CHAT, "28 models": CHAT}
LOCK_ROUNDS, LOCK_MARGIN = 2000, 0.03


class Job(NamedTuple):
    """One run. rounds: 0 = as many as the table has.  batch: outcomes come back together after so many decisions."""

    table: str
    candidate: str
    order: int
    rounds: int = 0
    batch: int = 1
    scale: str = "as it is"


class Run(NamedTuple):
    """What came of a job: mean reward of all rounds and of the second half, of the picks and of the best fixed arm."""

    mean: float
    late: float
    fixed: float
    fixed_late: float
    picks: str
    seconds: float


@cache
def table(name: str, data: Path) -> Bench:
    """Features and rewards; `28 models` has the prompts of mmlu_pro."""
    if name != "28 models":
        return BENCHES[name](data)
    with gzip.open(data / "mmlu_pro" / "scores.csv.gz", "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    rewards = np.array([[float(rows[i][model]) for model in rows[i] if model != "id"] for i in mmlu_rows(len(rows))])
    ten = table("mmlu_pro", data)
    return Bench(features=ten.features, rewards=rewards, expected=rewards, group=ten.group, rounds=800)


def play(job: Job, *, data: Path, reference: Path | None) -> Run:
    """One run. reference: the folder of evidence.py, for the candidate `reference`."""
    here, started = table(job.table, data), time.process_time()
    order = np.random.default_rng(job.order).permutation(len(here.rewards))[: job.rounds or here.rounds]
    factor, shift = SCALES[job.scale]
    rewards = factor * here.rewards + shift
    if job.candidate == "reference":
        assert reference is not None
        picks = np.asarray(loaded(reference).run(here.features, rewards, order, job.order, batch=job.batch))
    else:
        kind, setting = RIVALS.get(job.candidate, ("auto", {}))
        if job.candidate == "thompson":
            setting = {"posterior": "beta" if 0.0 <= rewards.min() <= rewards.max() <= 1.0 else "gaussian"}
        world = World(features=here.features[order], rewards=rewards[order], expected=rewards[order])
        delays = [job.batch - 1 - t % job.batch for t in range(len(order))] if job.batch > 1 else []
        policy = build(kind, setting, dim=here.features.shape[1], seed=job.order)
        uniforms = np.random.default_rng([job.order, 1]).random(len(order)).tolist() if job.candidate == SAME_DRAWS else []
        picks = simulate(policy, world, delays=delays, uniforms=uniforms).picks.astype(np.int64)
    seconds, half = time.process_time() - started, len(order) // 2
    mine = here.rewards[order, picks]
    best = here.rewards[order, int(here.rewards.mean(0).argmax())]
    digest = hashlib.sha256(picks.astype(np.uint8).tobytes()).hexdigest()[:16]
    return Run(float(mine.mean()), float(mine[half:].mean()), float(best.mean()), float(best[half:].mean()), digest, seconds)


@cache
def loaded(folder: Path) -> Any:
    """The module FOLDER/evidence.py."""
    spec = importlib.util.spec_from_file_location("evidence", folder / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def jobs(*, reference: bool, locks: int) -> dict[str, list[Job]]:
    """By part, in the order in which they are played. locks: orders from 0 on that are searched for locks."""
    pair = ["auto", "reference"] if reference else ["auto"]
    spread = [(name, orders[i]) for i in range(8) for name, orders in TABLES.items()]  # a few orders of every table first
    few = spread[: 4 * len(TABLES)]
    return {
        "paired": [Job(name, one, n) for name, n in spread for one in pair],
        "scales": [Job(name, "auto", orders[0], scale=scale) for name, orders in TABLES.items() for scale in SCALES],
        "rivals": [Job(name, one, n) for name, n in spread for one in RIVALS if one != "auto"],
        "locks": [Job("mmlu_pro", "auto", n, rounds=LOCK_ROUNDS) for n in range(locks)],
        "blind": [Job("mmlu_pro", "auto without prompt", n, rounds=LOCK_ROUNDS) for n in range(locks)],
        "draws": [Job(name, SAME_DRAWS, n) for name, n in few],
        "batches": [Job(name, one, n, batch=BATCH) for name, n in few for one in pair],
    }


def shown(runs: Mapping[Job, Run], *, locks: int) -> str:
    """Every table that the runs can fill, in Markdown."""
    texts = [f"Mean reward ± standard error over orders (second half)\n\n{_means(runs)}"]
    for batch, title in ((1, "at once"), (BATCH, f"in batches of {BATCH}")):
        texts.append(f"`auto` minus the other on the same order, outcomes {title}: difference ± standard error (t, orders)\n\n")
        texts[-1] += _differences(runs, batch)
    same = {
        name: len({runs[job].picks for scale in SCALES if (job := Job(name, "auto", orders[0], scale=scale)) in runs})
        for name, orders in TABLES.items()
    }
    drawn = [
        runs[job].picks == runs[twin].picks
        for job in runs
        if job.candidate == SAME_DRAWS and (twin := job._replace(candidate="reference")) in runs
    ]
    texts.append(f"picks equal to the reference's, if drawn by its numbers: {sum(drawn)} of {len(drawn)} runs")
    texts.append(f"different picks of the scales {', '.join(SCALES)} (1 = none): {same}")
    for one in RIVALS:
        found = [run for n in range(locks) if (run := runs.get(Job("mmlu_pro", one, n, rounds=LOCK_ROUNDS)))]
        if found:
            locked = sum(run.late < run.fixed_late - LOCK_MARGIN for run in found)
            mean = np.mean([run.mean for run in found])
            texts.append(f"`{one}`: {locked} of {len(found)} orders of mmlu_pro locked at {LOCK_ROUNDS} rounds, mean {mean:.4f}")
    return "\n\n".join(texts)


def _means(runs: Mapping[Job, Run]) -> str:
    rows = []
    for one in ("auto", "reference", *list(RIVALS)[1:]):
        found = {name: [run for n in orders if (run := runs.get(Job(name, one, n)))] for name, orders in TABLES.items()}
        rows.append([f"`{one}`", *(_cell([r.mean for r in f], [r.late for r in f]) for f in found.values())])
    best = [[run for n in orders if (run := runs.get(Job(name, "auto", n)))] for name, orders in TABLES.items()]
    rows.append(["best fixed arm", *(_cell([r.fixed for r in found], [r.fixed_late for r in found]) for found in best)])
    return markdown(["", *TABLES], rows)


def _cell(means: Sequence[float], late: Sequence[float]) -> str:
    if not means:
        return ""
    error = f" ± {np.std(means, ddof=1) / np.sqrt(len(means)):.4f}" if len(means) > 1 else ""
    return f"{np.mean(means):.4f}{error} ({np.mean(late):.4f})"


def _differences(runs: Mapping[Job, Run], batch: int) -> str:
    rows = []
    for one in ("reference", *list(RIVALS)[1:]):
        row = []
        for name, orders in TABLES.items():
            pairs = [(Job(name, "auto", n, batch=batch), Job(name, one, n, batch=batch)) for n in orders]
            d = [runs[a].mean - runs[b].mean for a, b in pairs if a in runs and b in runs]
            error = float(np.std(d, ddof=1) / np.sqrt(len(d))) if len(d) > 1 else 0.0
            row.append(f"{np.mean(d):+.4f} ± {error:.4f} ({np.mean(d) / error:+.1f}, {len(d)})" if error else "")
        if any(row):
            rows.append([f"`{one}`", *row])
    return markdown(["", *TABLES], rows)


def main() -> None:
    """Play what is missing, then show the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.auto", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", default="paired,scales,rivals,locks,blind,draws,batches", help="parts, separated by commas (default: all)"
    )
    parser.add_argument("--tables", default=",".join(TABLES), help="tables, separated by commas (default: all)")
    parser.add_argument("--reference", type=Path, help="folder of evidence.py")
    parser.add_argument("--locks", type=int, default=100, help="orders that are searched for locks (default: 100)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the recorded tables")
    parser.add_argument("--out", type=Path, default=Path("out/auto"))
    parser.add_argument("--show", action="store_true", help="play nothing")
    chosen = parser.parse_args()
    path = chosen.out / "runs.jsonl"
    runs, parts = resumed.kept(path, Job, Run), jobs(reference=chosen.reference is not None, locks=chosen.locks)
    wanted = [job for part in chosen.only.split(",") for job in parts[part] if job.table in chosen.tables.split(",")]
    if not chosen.show:
        if any(job.table in ("mmlu_pro", "28 models") for job in wanted):
            table("mmlu_pro", chosen.data)  # embeds the prompts, once
        resumed.fill(path, runs, wanted, partial(play, data=chosen.data, reference=chosen.reference))
    print(shown(runs, locks=chosen.locks))


if __name__ == "__main__":
    main()
