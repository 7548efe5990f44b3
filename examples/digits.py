"""`make demo`: a router that learns, on real input, offline, in a minute or two.

    scikit-learn's digits --600--> five classifiers, trained on the spot = the models, each with its price
                         --1,197 held out--> the prompts, posted as vectors; reward = 1 if the answer was right, minus the price

It starts a private service, plays the prompts against it over HTTP for several seeds, and prints the table and the plot's path.
The two cheap specialists know half of the digits each, so no fixed choice can be as good as knowing whom to ask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from service.cli.replay.contenders import contenders, offered
from service.cli.replay.errors import ReplayError
from service.cli.replay.player import Plan
from service.cli.replay.report import Report
from service.cli.replay.run import finish, play_with_progress, serving
from service.cli.replay.tables import Table

TRAINING = 600
POLICIES = ("auto", "pak-ucb", "pak-ucb:exploration=0.5:bandwidth=0.5", "greedy")
"""The default, with nothing to set; pak-ucb as it comes, and with a setting for these vectors (digits of different kinds lie
about 0.8 apart); and the best average, which ignores the prompt.
"""


@dataclass(frozen=True)
class Model:
    """A classifier that can be asked. answer: (n, 64) images -> (n,) digits.  price: per call, where a right answer earns 1."""

    answer: Callable[[np.ndarray], np.ndarray]
    price: float


def thumbnails(images: np.ndarray) -> np.ndarray:
    """(n, 16) the 8 x 8 images (n, 64) as 4 x 4: every pixel the mean of four."""
    return np.asarray(images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16))


def nearest_mean(images: np.ndarray, digits: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A classifier that answers the digit whose mean image is closest."""
    kinds = np.unique(digits)
    means = np.stack([images[digits == kind].mean(axis=0) for kind in kinds])  # (10, pixels)
    return lambda x: np.asarray(kinds[((x[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)])


def train(images: np.ndarray, digits: np.ndarray) -> dict[str, Model]:
    """Five models. The prices are a price list, set by hand: the more a model knows and sees, the dearer it is."""
    low = digits < 5

    def linear(rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(max_iter=1000).fit(images[rows], digits[rows])

    small = nearest_mean(thumbnails(images), digits)
    return {
        "thumbnail": Model(lambda x: small(thumbnails(x)), 0.01),
        "only-0-to-4": Model(linear(low).predict, 0.02),
        "only-5-to-9": Model(linear(~low).predict, 0.02),
        "nearest-mean": Model(nearest_mean(images, digits), 0.10),
        "kernel-machine": Model(SVC(C=10.0).fit(images, digits).predict, 0.25),
    }


def digits_table() -> Table:
    """The held-out digits as prompts; what each model would have earned on each."""
    everything = load_digits()
    images, digits = everything.data / 16.0, everything.target
    seen, held_out, seen_digits, truth = train_test_split(images, digits, train_size=TRAINING, random_state=0, stratify=digits)
    models = train(seen, seen_digits)
    right = np.stack([model.answer(held_out) == truth for model in models.values()], axis=1).astype(np.float64)
    costs = np.tile([model.price for model in models.values()], (len(truth), 1))
    return Table(
        name="digits",
        arms=tuple(models),
        prompts=tuple(f"digit {i}" for i in range(len(truth))),
        rewards=right - costs,
        expected=right - costs,
        costs=costs,
        vectors=held_out.astype(np.float32),
        groups=tuple(map(str, truth)),
        has_costs=True,
    )


def play(*, seeds: int, out: Path, quiet: bool = False) -> Report:
    """Start a service, play, print, save."""
    click.echo("training five classifiers on 600 digits ...", err=True)
    table = digits_table()
    plan = Plan(
        rounds=len(table.prompts),
        seeds=tuple(range(seeds)),
        embedder="vector",
        prices=tuple(table.costs[0].tolist()),
        prefix="digits",
    )
    click.echo("starting a service on a free port ...", err=True)
    with serving("") as api:
        click.echo(f"playing against {api.url} ...", err=True)
        players = contenders(POLICIES, settings=(), objects=(), known=offered(api))
        runs = play_with_progress(api, table, players, plan, quiet=quiet)
    return finish(table, players, runs, plan, out=out, notes=["reward: 1 if right, minus the price"])


def main() -> int:
    """Exit code 1 where the learned router did not beat the best fixed model."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="orders of the prompts (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of plot.png and results.json")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    chosen = parser.parse_args()
    try:
        report = play(seeds=chosen.seeds, out=chosen.out, quiet=chosen.quiet)
    except ReplayError as error:
        error.show()
        return error.exit_code
    best = report.best
    verdict = "beats" if best.gain.mean > 0 else "does not beat"
    click.echo(f"{best.label} {verdict} the best fixed model by {abs(best.gain.mean):.3f} per prompt")
    return 0 if best.gain.mean > 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
