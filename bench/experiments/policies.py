"""Do the policies reach what is expected of them? Monte-Carlo tables and golden runs, ours beside the expected, and pictures.

    python -m bench.experiments.policies --quick                      a few seeds, about three minutes of one core
    python -m bench.experiments.policies --plots docs/plots           everything, about half an hour of one core
    python -m bench.experiments.policies --only I1,G2 --seeds 5       some of it

    I1 I2  fd-ucb      I4  mixture-ucb, mixture-greedy    G2  pak-ucb        G6  pak-ucb and promptwise on recorded answers,
    I3 I8  is-ucb      I5 I6 I7  mixture-greedy           G4  dak-ucb            where they are (../shared/data beside the
                                                          G5  promptwise         checkout)

A golden run (G2, G4, G5, G6) must choose the expected arms, in every round; a mean (I1 to I8) must lie within four standard
errors of the expected one. What misses is called OUT, and the exit code is 1. A complete run writes docs/measurements.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from bench.experiments.monte_carlo import contextual, episodes, mixtures, samples
from bench.experiments.monte_carlo.report import markdown, show
from bench.experiments.monte_carlo.result_cache import play_all
from bench.experiments.monte_carlo.studies import Check, Runs, Study, judge
from bench.pages import write
from tools.recorded_tables import DATA


def all_studies() -> list[Study]:
    """Every study, in the order of the tables."""
    return [*samples.studies(), *mixtures.studies(), *contextual.studies(), *episodes.studies()]


def chosen_studies(only: str, *, recorded: Path = DATA) -> list[Study]:
    """Those whose name, or the first word of it, is in a comma-separated list; all for "". G6 needs the recorded answers."""
    everything = all_studies()
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = {study.name for study in everything} | {study.name.split()[0] for study in everything}
    for name in wanted:
        if name not in known:
            raise SystemExit(f"--only {name}: there is {', '.join(sorted(known))}")
    chosen = [study for study in everything if not wanted or study.name in wanted or study.name.split()[0] in wanted]
    if not (recorded / "humaneval_pair" / "labels.npz").is_file():
        print(f"G6: left out, the recorded answers are not in {recorded}", file=sys.stderr)
        chosen = [study for study in chosen if study.name.split()[0] != "G6"]
    return chosen


def results(checks: Mapping[str, Sequence[Check]], runs: Mapping[str, Runs], about: Mapping[str, str]) -> str:
    """Everything as JSON: the checks, and the numbers of every run."""
    return json.dumps(
        {
            "about": dict(about),
            "checks": [{**vars(check), "verdict": check.verdict} for rows in checks.values() for check in rows],
            "runs": {
                name: {label: [dict(run.values) for run in played] for label, played in contenders.items()}
                for name, contenders in runs.items()
            },
        },
        indent=1,
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.policies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="I1,G2,...", help="these studies alone (default: all)")
    parser.add_argument("--seeds", type=int, default=1_000_000, help="at most so many seeds (default: 5 to 200, by world)")
    parser.add_argument("--quick", action="store_true", help="few seeds, nothing slow")
    parser.add_argument("--plots", type=Path, help="draw one picture per policy into this folder")
    parser.add_argument("--out", type=Path, default=Path("out/policies"), help="results.json, table.md and the runs")
    parser.add_argument("--reuse", action="store_true", help="take the runs that an earlier call kept in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    chosen = parser.parse_args()
    if chosen.seeds < 1:
        parser.error("--seeds must be at least 1")
    return chosen


def main() -> int:
    """Exit code 1 if a check is OUT."""
    chosen = parsed()
    torch.set_num_threads(1)
    studies = chosen_studies(chosen.only)
    folder = chosen.out / ("quick" if chosen.quick else "runs")
    runs = play_all(studies, quick=chosen.quick, at_most=chosen.seeds, folder=folder, reuse=chosen.reuse, quiet=chosen.quiet)
    checks = {study.name: judge(study, runs[study.name]) for study in studies}
    about = {
        "command": shlex.join(["python", "-m", "bench.experiments.policies", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": f"torch {torch.__version__}, numpy {np.__version__}",
    }
    (chosen.out / "results.json").write_text(results(checks, runs, about))
    page = markdown(studies, checks, runs, about)
    (chosen.out / "table.md").write_text(page)
    if not chosen.quick and not chosen.only and chosen.seeds >= max(study.seeds for study in studies):
        write({"monte-carlo": page})
    console = Console(width=max(Console().width, 150))
    out = show(studies, checks, runs, console=console)
    if chosen.plots:
        from bench.experiments.monte_carlo.plots import draw_all

        for path in draw_all(chosen.plots, runs):
            console.print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 1 if out else 0


if __name__ == "__main__":
    raise SystemExit(main())
