"""What a round costs here, and what it costs a textbook that computes as the papers' released code does.

    python -m bench.comparison.reference  about ten minutes of one core; curves are kept as they come, --only repeats some
    python -m bench.comparison.reference --write    then writes the table of docs/performance.md
    python -m bench.comparison.reference --quick    small sizes, under a minute

Both sides learn the same rounds in turn, in this process and on one thread: weights for a prompt, the outcome of one arm,
whatever must be ready before the next prompt. CPU time of the thread, medians. The textbooks are ours too
(`bench/comparison/textbook.py`); the general solver of Mixture-UCB is SciPy's SLSQP, and the modelling layer is cvxpy,
from the environment of the benches' own. A curve ends where a round of its textbook would take longer than `--patience`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from bench.comparison import environment
from bench.comparison.head_to_head import ARMS, Round, dak, frechet, frechet_picks, mixture, pak, weights_alone
from bench.pages import markdown, write
from bench.performance.load_testing.machine import processor

KEPT = Path(__file__).resolve().parents[2] / "out" / "reference.json"
SIZES = (100, 250, 500, 1000, 2000, 5000)
QUICK = (50, 200)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """at: n -> side -> one round, the textbook first. growth: exponent of n in the cost of a textbook round, for when to stop.
    agree: sides that choose as the textbook does.
    """

    name: str
    at: Callable[[int], dict[str, Round]]
    growth: float
    sizes: tuple[int, ...] = SIZES
    quick: tuple[int, ...] = QUICK
    agree: tuple[str, ...] = ("exact kernel",)
    title: str


@dataclass(frozen=True)
class Measured:
    """seconds: per side, the median of its rounds. same, of: rounds in which the sides of `agree` picked the textbook's arm."""

    seconds: dict[str, float]
    same: int
    of: int


CURVES = (
    Curve(name="PAK-UCB", at=pak, growth=3.0, title="PAK-UCB, refitted each round; 3 arms, n samples each, d = 384"),
    Curve(name="DAK-UCB", at=dak, growth=3.0, title="DAK-UCB, refitted each round; 3 arms, n samples each, d = e = 384"),
    Curve(
        name="Mixture-UCB",
        at=mixture,
        growth=1.0,
        agree=("exact kernel, cab",),
        title="Mixture-UCB, weights by a general solver; 3 arms, n samples in all, e = 768",
    ),
    Curve(
        name="weights",
        at=weights_alone,
        growth=1.0,
        sizes=(3, 10, 30),
        quick=(3, 10),
        agree=("active set from the last weights",),
        title="The weights of Mixture-UCB alone, n arms",
    ),
    *(
        Curve(
            name=f"FD-UCB {dim}",
            at=frechet(dim),
            growth=0.0,
            sizes=(100, 1000, 5000),
            quick=(),
            agree=(),
            title=f"FD-UCB, general matrix root; 3 arms, n samples each, outcomes of 5, e = {dim:,}",
        )
        for dim in (512, 2048)
    ),
)


# -- measuring -------------------------------------------------------------------------------------------------------------


def measured(sides: Mapping[str, Round], *, agree: Sequence[str], seconds: float, rounds: int = 32) -> Measured:
    """All sides in turn, the same rounds: one per arm to warm up, then blocks of 8 (1, where a textbook is slow) until `rounds`
    are played or about `seconds` went by. In blocks, because a side that runs alone finds its caches as it left them.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    picks: dict[str, list[int]] = {name: [] for name in sides}
    begin, t, block = time.perf_counter(), 0, 1
    while t <= rounds and (t <= ARMS or time.perf_counter() - begin < seconds):
        for name, play in sides.items():
            for step in range(t, t + block):
                start = time.thread_time()
                picks[name].append(play(step))
                taken[name].append(time.thread_time() - start)
        t += block
        block = 1 if t < ARMS else 8 if max(times[-1] for times in taken.values()) < 0.05 else 1
    book = next(iter(picks.values()))
    same = sum(all(picks[name][i] == book[i] for name in agree) for i in range(t))
    return Measured({name: float(np.median(times[ARMS:])) for name, times in taken.items()}, same, t)


def measured_curve(chosen: Curve, *, sizes: Sequence[int], seconds: float, patience: float, console: Console) -> str:
    """Markdown: one row per n."""
    columns, rows = ["n"], list[list[str]]()
    last: tuple[int, float] | None = None
    for n in sizes:
        if last is not None and (expected := last[1] * (n / last[0]) ** chosen.growth) > patience:
            rows.append([f"{n:,}", f"not run: a round would take about {expected:.0f} s"])
            continue
        found = measured(chosen.at(n), agree=chosen.agree, seconds=seconds)
        columns = ["n", *found.seconds, "textbook / ours", "same picks"]
        books = [cost for name, cost in found.seconds.items() if name.startswith("textbook")]
        mine = [cost for name, cost in found.seconds.items() if not name.startswith("textbook")]
        ratios = "; ".join(" and ".join(f"{book / cost:,.1f}" for book in books) for cost in mine)
        agreed = f"{found.same} of {found.of}" if chosen.agree else "{} of {} at e = 16".format(*frechet_picks())
        rows.append([f"{n:,}", *map(milliseconds, found.seconds.values()), ratios, agreed])
        console.print(chosen.name, *rows[-1])
        last = (n, books[0])
    return markdown(columns, rows)


def milliseconds(seconds: float) -> str:
    """Three digits and the unit."""
    return f"{seconds:.1f} s" if seconds >= 10.0 else f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def signature() -> str:
    """The command, the machine and the versions."""
    cvxpy = environment.borrowed("cvxpy")
    versions = f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}"
    layer = f", cvxpy {cvxpy.__version__}" if cvxpy is not None else ", no modelling layer"
    return (
        f"`python -m bench.comparison.reference --write`, {time.strftime('%Y-%m-%d')}: one thread of {processor()}, float64; "
        f"{versions}{layer}. "
        "CPU time of the thread, medians over the rounds of a cell."
    )


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.comparison.reference", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/")
    parser.add_argument("--only", default="", help="these curves, separated by commas: " + ", ".join(d.name for d in CURVES))
    parser.add_argument("--reuse", action="store_true", help="measure nothing, tell what was kept")
    parser.add_argument("--seconds", type=float, default=12.0, help="per size of a curve")
    parser.add_argument("--patience", type=float, default=60.0, help="longest round of a textbook, in seconds")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True, width=160, highlight=False)
    if environment.borrowed("cvxpy") is None:
        console.print("no modelling layer:", environment.install("cvxpy") or "installed now")
    only = {name for name in asked.only.split(",") if name}
    kept: dict[str, str] = json.loads(KEPT.read_text()) if KEPT.is_file() and not asked.quick else {}
    with threadpool_limits(1):
        for chosen in CURVES:
            sizes = chosen.quick if asked.quick else chosen.sizes
            if sizes and not asked.reuse and (not only or chosen.name in only):
                table = measured_curve(
                    chosen,
                    sizes=sizes,
                    seconds=asked.seconds / (6 if asked.quick else 1),
                    patience=asked.patience,
                    console=console,
                )
                kept[chosen.name] = table
                if not asked.quick:
                    KEPT.parent.mkdir(exist_ok=True)
                    KEPT.write_text(json.dumps(kept))
    page = [line for it in CURVES if it.name in kept for line in (f"**{it.title}**", "", kept[it.name], "")]
    text = "\n".join([*page, signature()])
    print(text)
    if asked.write:
        write({"measured reference": text})


if __name__ == "__main__":
    main()
