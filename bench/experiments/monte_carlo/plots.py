"""One picture per policy, from the runs of the studies: what the policy does, against its baselines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.experiments.monte_carlo.pictures import Everything
from bench.experiments.monte_carlo.plots_prompts import dak_ucb, pak_ucb, promptwise
from bench.experiments.monte_carlo.plots_samples import fd_ucb, is_ucb, mixture_greedy, mixture_ucb

PICTURES: dict[str, tuple[tuple[str, ...], Callable[[Path, Everything], None]]] = {
    "pak-ucb": (("G2", "G6"), pak_ucb),
    "dak-ucb": (("G4",), dak_ucb),
    "promptwise": (("G5", "G6 episodes"), promptwise),
    "fd-ucb": (("I2",), fd_ucb),
    "is-ucb": (("I3", "I8"), is_ucb),
    "mixture-ucb": (("I4 rke",), mixture_ucb),
    "mixture-greedy": (("I5", "I7"), mixture_greedy),
}


def draw_all(folder: Path, runs: Everything) -> list[Path]:
    """The pictures whose studies were played, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for kind, (needed, picture) in PICTURES.items():
        if all(name in runs for name in needed):
            path = folder / f"{kind}.png"
            picture(path, runs)
            drawn.append(path)
    return drawn
