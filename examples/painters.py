"""`make demo-images`: five painters behind the service, five policies that choose between them by what was painted.

    painters (procedural, offline) --PNG--> the HTTP API of a private server --> CLIPScore, embeddings --> what is asked next

It plays each scene of `examples.painters_parts.scenes` live, prints the numbers beside those of random and fixed choices on the
same offers, and ends in pictures: one of all scenes, and one of each. A few minutes of one core; the same seed gives the same
pictures and the same numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from examples.painters_parts import clip as clips
from examples.painters_parts import report, scenes
from examples.painters_parts.play import Api, play
from examples.painters_parts.report import Panel
from examples.painters_parts.scenes import Scene
from service.cli.replay.errors import ReplayError
from service.cli.replay.run import serving

SCENES: dict[str, tuple[Callable[..., Scene], int]] = {
    "pak-ucb": (scenes.specialists, 500),
    "dak-ucb": (scenes.variety, 400),
    "mixture-ucb": (scenes.wall, 300),
    "fd-ucb": (scenes.in_the_style_of, 60),
    "promptwise": (scenes.until_accepted, 400),
}
"""Scene -> rounds."""


def run(api: Api, names: Sequence[str], *, seed: int, rounds: int, progress: Progress) -> list[Panel]:
    """Play the scenes. rounds: at most so many each, 0 = as many as the scene has."""
    clip = clips.load()
    panels = []
    for name in names:
        make, length = SCENES[name]
        length = min(length, rounds) if rounds else length
        painting = progress.add_task(f"{name}: painting", total=length, now="")
        scene = make(clip=clip, rounds=length, seed=seed, each=lambda bar=painting: progress.advance(bar))
        panels.append(Panel(scene=scene, rows=_rows(api, scene, seed=seed, progress=progress)))
    return panels


def _rows(api: Api, scene: Scene, *, seed: int, progress: Progress) -> list[report.Row]:
    rows = []
    for entrant in scene.entrants:
        bar = progress.add_task(f"{scene.key}: {entrant.label} over HTTP", total=len(scene.gallery.wishes), now="")

        def each(k: int, bar: TaskID = bar) -> None:
            progress.update(bar, advance=1, now="" if k < 0 else scene.gallery.painters[k].name)

        name = f"{scene.key}-{entrant.label}-{seed}"
        served = play(api, name, scene.gallery, entrant, seed=seed, references=scene.references, each=each)
        rows.append(report.row(scene, entrant.label, served, learned=True))
    for label, baseline in scene.baselines.items():
        rows.append(report.row(scene, label, baseline(scene.gallery), learned=False))
    return rows


def tables(panels: Sequence[Panel]) -> list[Table]:
    """The numbers, for a terminal."""
    made = []
    for panel in panels:
        table = Table(title=panel.scene.title, title_justify="left", caption=panel.scene.question, caption_justify="left")
        table.add_column("")
        for column in panel.scene.columns:
            table.add_column(column.name, justify="right")
        for row in panel.rows:
            cells = [column.form.format(row.values[column.name]) for column in panel.scene.columns]
            table.add_row(row.label, *cells, style="bold" if row.learned else "")
        made.append(table)
    return made


def main() -> int:
    """Exit code 1 where a claim failed."""
    parser = argparse.ArgumentParser(prog="python -m examples.painters", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0, help="at most so many per scene (default: each scene's own number)")
    parser.add_argument("--only", choices=list(SCENES), nargs="+", default=list(SCENES), help="these scenes")
    parser.add_argument("--out", type=Path, default=Path("out/demo-images"), help="folder of the pictures and of results.json")
    parser.add_argument("--docs", type=Path, help="also write the pictures to this folder")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")]
    try:
        console.print("starting a service on a free port ...")
        with serving("") as api, Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            panels = run(api, chosen.only, seed=chosen.seed, rounds=chosen.rounds, progress=progress)
    except ReplayError as error:
        error.show()
        return error.exit_code
    out = Console(width=None if Console().is_terminal else 120)
    for table in tables(panels):
        out.print(table)
    for panel in panels:
        click.echo(f"{'yes' if panel.holds else 'NO '}  {panel.scene.key}: {panel.scene.claim}")
    _save(panels, chosen.out, seed=chosen.seed, docs=chosen.docs)
    click.echo(f"{time.monotonic() - started:.0f} s; pictures: {chosen.out / 'demo-*.png'}")
    return 0 if all(panel.holds for panel in panels) else 1


def _save(panels: Sequence[Panel], folder: Path, *, seed: int, docs: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = {panel.scene.key: {row.label: dict(row.values) for row in panel.rows} for panel in panels}
    claims = {panel.scene.key: {"claim": panel.scene.claim, "holds": panel.holds} for panel in panels}
    (folder / "results.json").write_text(json.dumps({"seed": seed, "scenes": results, "claims": claims}, indent=1) + "\n")
    for where in filter(None, (folder, docs)):
        note = f"make demo-images, seed {seed}"
        report.save_overview(where / "demo-images.png", panels, note=note)
        for panel in panels:
            rounds = f"{note}, {len(panel.scene.gallery.wishes)} rounds"
            report.save_scene(where / f"demo-{panel.scene.key}.png", panel, note=rounds)


if __name__ == "__main__":
    raise SystemExit(main())
