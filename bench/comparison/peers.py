"""What other libraries cost per decision and what they earn, in the same worlds, in the same orders, tuned alike.

    python -m bench.comparison.peers                 about half an hour of one core; results are kept as they come
    python -m bench.comparison.peers --write         then writes the tables of docs/performance_peers.md
    python -m bench.comparison.peers --quick         the two small worlds, two seeds

The libraries are installed by pip into an environment of their own, `out/peers/venv`, and run there in processes of their own;
they are no dependencies of this project. What cannot be installed or fails stands in the table with its error. Every library
chooses its setting from a small grid (`bench/comparison/learners.py`) on seeds 100 and 101, over the first 500 rounds, and
then plays four other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.comparison import environment
from bench.comparison.learners import ENTRIES
from bench.experiments.defaults.tables import BENCHES, Bench
from bench.pages import markdown, write
from bench.performance.load_testing.machine import end_on_sigterm, processor
from tools.recorded_tables import DATA

ROOT = Path(__file__).resolve().parents[2]
WORLDS = ROOT / "out" / "peers" / "worlds"
RESULTS = ROOT / "out" / "peers" / "results.json"
SEEDS, TUNING, TUNING_ROUNDS = (0, 1, 2, 3), (100, 101), 500
ROUNDS = {"clusters": 600, "coderouterbench": 2000, "humaneval": 1000, "mmlu_pro": 1000}
COST_DIM, COST_ARMS, WARM, COUNTED = 384, 5, 300, 200

Results = dict[str, dict[str, Any]]
"""Entry -> world, or "cost" -> what `drive` printed, or {"error": why not}."""


@dataclass(frozen=True)
class Known:
    """Mean reward of who knows something beforehand."""

    fixed: float
    grouped: float
    chance: float


# -- worlds ----------------------------------------------------------------------------------------------------------------


def prepared(names: Sequence[str]) -> dict[str, Known]:
    """Write the worlds that can be had here, with the orders of all seeds, and say what is known of them."""
    WORLDS.mkdir(parents=True, exist_ok=True)
    known = {}
    for name in names:
        if name != "clusters" and not DATA.is_dir():
            continue
        bench: Bench = BENCHES[name](DATA)
        orders = {
            f"order_{seed}": np.random.default_rng(seed).permutation(len(bench.rewards))[: ROUNDS[name]] for seed in seeds()
        }
        np.savez(WORLDS / f"{name}.npz", features=bench.features, rewards=bench.rewards, allow_pickle=False, **orders)
        known[name] = Known(bench.fixed, bench.grouped, float(bench.expected.mean()))
    rng = np.random.default_rng(5)
    features = rng.normal(size=(WARM + COUNTED, COST_DIM))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rewards = (rng.random((len(features), COST_ARMS)) < np.linspace(0.3, 0.7, COST_ARMS)).astype(float)
    np.savez(WORLDS / "cost.npz", features=features, rewards=rewards, order_0=np.arange(len(features)))
    return known


def seeds() -> tuple[int, ...]:
    """All that are ever played."""
    return (*SEEDS, *TUNING)


# -- playing ---------------------------------------------------------------------------------------------------------------


def driven(entry: str, job: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """Run one job in the environment of its library: one thread, a process of its own."""
    ours = not ENTRIES[entry].package
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [
        sys.executable if ours else str(environment.python()),
        "-m",
        "bench.comparison.drive",
        json.dumps({"entry": entry, **job}),
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **single}, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def fill(results: Results, worlds: Sequence[str], *, played: int, seconds: float, console: Console) -> None:
    """Play whatever is not in the results yet; install a library before its first job."""
    ready: dict[str, str] = {}
    for world in ("cost", *worlds):
        for entry, about in ENTRIES.items():
            if world != "cost" and not about.learns:
                continue
            done = results.setdefault(entry, {})
            if world in done and len(done[world].get("rewards", SEEDS)) >= played and "error" not in done[world]:
                continue
            if about.package and about.package not in ready:
                ready[about.package] = environment.install(about.package)
            job: dict[str, Any] = {"world": str(WORLDS / f"{world}.npz"), "warm": WARM}
            if world != "cost":
                job = {"world": job["world"], "tune": TUNING, "tune_rounds": TUNING_ROUNDS, "seeds": SEEDS[:played]}
            failed = ready.get(about.package, "")
            done[world] = {"error": f"pip: {failed}"} if failed else driven(entry, job, seconds=seconds)
            console.print(entry, world, done[world], soft_wrap=True)
            RESULTS.write_text(json.dumps(results, indent=1))


# -- telling ---------------------------------------------------------------------------------------------------------------


def cost_table(results: Results) -> str:
    """Markdown: microseconds of CPU per choice and update."""
    rows = []
    for entry, done in results.items():
        cost = done.get("cost", {"error": "not run"})
        numbers = [] if "error" in cost else [cost["choose"], cost["learn"], cost["choose"] + cost["learn"]]
        rows.append([entry, *([f"{1e6 * seconds:,.0f}" for seconds in numbers] or [cost.get("error", ""), "", ""])])
    return markdown(["library", "choose, us", "update, us", "both, us"], rows)


def reward_table(results: Results, known: Mapping[str, Known]) -> str:
    """Markdown: mean reward and spread over the seeds, the best of each world in bold."""
    found = {(e, w): done.get(w, {"error": "not run"}) for e, done in results.items() if ENTRIES[e].learns for w in known}
    mean = {key: float(np.mean(one["rewards"])) for key, one in found.items() if "rewards" in one}
    best = {world: max((value for (_, w), value in mean.items() if w == world), default=0.0) for world in known}

    def cell(entry: str, world: str) -> str:
        if (entry, world) not in mean:
            return str(found[entry, world]["error"])
        text = f"{mean[entry, world]:.3f} ± {np.std(found[entry, world]['rewards'], ddof=1):.3f}"
        return f"**{text}**" if mean[entry, world] == best[world] else text

    rows = [[entry, *(cell(entry, world) for world in known)] for entry in results if ENTRIES[entry].learns]
    for title, pick in (("best arm per group, known", "grouped"), ("best fixed arm, known", "fixed"), ("random", "chance")):
        rows.append([title, *(f"{getattr(about, pick):.3f}" for about in known.values())])
    return markdown(["library", *known], rows)


def versions() -> str:
    """Of the libraries, as the metadata of their environment has them."""
    names = sorted({about.package.partition("<")[0] for about in ENTRIES.values() if about.package} | {"numpy"})
    program = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass"
    )
    told = subprocess.run([str(environment.python()), "-c", program, *names], capture_output=True, text=True, check=False)
    return ", ".join(told.stdout.split("\n")).strip(", ")


def page(results: Results, known: Mapping[str, Known]) -> str:
    """Everything between the markers."""
    rounds = ", ".join(f"{world} {ROUNDS[world]:,}" for world in known)
    command = (
        f"`python -m bench.comparison.peers --write`, {time.strftime('%Y-%m-%d')}, one thread of {processor()}; {versions()}."
    )
    cost = (
        f"CPU per decision and per outcome, d = {COST_DIM}, {COST_ARMS} arms, medians of {COUNTED} rounds after {WARM}, least of "
        "three runs; every library is called in a process of its own, from a NumPy vector:"
    )
    reward = (
        f"Mean reward ± standard deviation over {len(SEEDS)} seeds (another order each, the same for all); rounds: {rounds}. "
        "Regret is the difference to one of the last three rows:"
    )
    return "\n".join([command, "", cost, "", cost_table(results), "", reward, "", reward_table(results, known)])


def main() -> None:
    """Prepare, play, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.comparison.peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the two small worlds, two seeds, nothing kept")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/")
    parser.add_argument("--reuse", action="store_true", help="play nothing, tell what was kept")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest job")
    parser.add_argument("--worlds", default=",".join(ROUNDS), help="these, separated by commas")
    asked = parser.parse_args()
    end_on_sigterm()
    known = prepared(["clusters", "humaneval"] if asked.quick else asked.worlds.split(","))
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not asked.quick else {}
    if not asked.reuse:
        console = Console(stderr=True, highlight=False)
        fill(results, list(known), played=2 if asked.quick else len(SEEDS), seconds=asked.seconds, console=console)
    text = page({entry: results.get(entry, {}) for entry in ENTRIES}, known)
    print(text)
    if asked.write:
        write({"measured peers": text})


if __name__ == "__main__":
    main()
