"""`python -m tools.train_clip`: a small CLIP, trained from nothing on pictures that this project draws.

    random descriptions --draw--> pictures --+
                        --caption--> texts --+--> open_clip's towers --> open_clip's loss --> service/embedders/shapes

Every batch is drawn afresh, of descriptions that all differ; parts are left unsaid in some captions, as people do. One
description in eleven is never drawn for training, so that accuracy is measured on new pictures of known descriptions, and on
descriptions that the model has never met. What is measured is what was saved, read back in float16.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from examples.painters_parts import clip as clips
from examples.painters_parts.clip import Clip, Vocabulary
from examples.painters_parts.drawing import BACKGROUNDS, EVERYTHING, GROUNDS, OPENINGS, SIZE_WORDS, Description, caption, draw

MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 12, "head_width": 64, "patch_size": None},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2},
}
"""Convolutions (open_clip's ResNet) learn these pictures several times faster than its vision transformer does."""
PREPROCESS: dict[str, Any] = {
    "size": [32, 32],
    "mode": "RGB",
    "mean": [0.4, 0.37, 0.38],
    "std": [0.32, 0.3, 0.31],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CONTEXT = 20
STEPS, BATCH = 800, 256
OMITTED = {"colour": 0.1, "size": 0.25, "background": 0.25}
"""How often a training caption leaves this part unsaid."""
LIMIT = 2 * 2**20
"""Bytes that the folder may have."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of pictures, 0 to 1, and mean cosines.

    exact: the caption with the largest cosine, of all 512, is the right one; the next four: it has the right part.
    pairs: the right caption beats that of another description drawn at random.  nearly: of one that differs in one part.
    """

    pictures: int
    exact: float
    shape: float
    colour: float
    size: float
    background: float
    pairs: float
    nearly: float
    matching: float
    mismatched: float


def vocabulary() -> Vocabulary:
    """Every word that a caption may use."""
    said = [*(caption(what) for what in EVERYTHING), *OPENINGS, *(g.format(b) for g in GROUNDS for b in BACKGROUNDS)]
    said += [f"{word}, gray the" for words in SIZE_WORDS.values() for word in words]
    return Vocabulary.of(said, context_length=CONTEXT)


def split(seed: int) -> tuple[list[Description], list[Description]]:
    """Descriptions that are trained on, and those that are not."""
    order = np.random.default_rng((seed, 1)).permutation(len(EVERYTHING))
    count = len(EVERYTHING) // 11
    return [EVERYTHING[i] for i in order[count:]], [EVERYTHING[i] for i in order[:count]]


def batch(clip: Clip, known: list[Description], random: np.random.Generator, *, size: int) -> tuple[Tensor, Tensor]:
    """(size, 3, s, s) pictures and (size, context) texts of different descriptions."""
    chosen = [known[i] for i in random.choice(len(known), size=size, replace=False)]
    pictures = [draw(what, random) for what in chosen]
    texts = []
    for what in chosen:
        omit = [part for part, share in OMITTED.items() if random.random() < share]
        texts.append(caption(what, random, omit=omit))
    return clip.pixels(pictures), clip.vocabulary.ids(texts)


def train(*, seed: int, steps: int = STEPS, size: int = BATCH, peak: float = 2e-3, model: dict[str, Any] = MODEL) -> Clip:
    """Contrastive training: AdamW, a short warm-up, then a cosine down to zero."""
    torch.manual_seed(seed)
    random = np.random.default_rng((seed, 2))
    clip = clips.blank(model, PREPROCESS, vocabulary())
    clip.model.train()
    known, _ = split(seed)
    loss = clips.open_clip().ClipLoss()
    optimiser = torch.optim.AdamW(clip.model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 0.5 * (1.0 + np.cos(np.pi * step / steps)))
    )
    with _progress() as progress:
        bar = progress.add_task("training", total=steps, loss=float("nan"))
        for _ in range(steps):
            pictures, texts = batch(clip, known, random, size=size)
            images, words, scale = clip.model(pictures, texts)
            value = loss(images, words, scale)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                clip.model.logit_scale.clamp_(0.0, np.log(100.0))
            progress.update(bar, advance=1, loss=value.item())
    return clip


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )  # fmt: skip


def measure(clip: Clip, shown: list[Description], *, seed: int) -> Accuracy:
    """Draw one new picture of each of the descriptions, and read it."""
    random = np.random.default_rng((seed, 3))
    images = clip.images([draw(what, random) for what in shown])
    texts = clip.texts([caption(what) for what in EVERYTHING])
    cosines = images @ texts.T  # (n, 512)
    right = torch.tensor([EVERYTHING.index(what) for what in shown])
    rows = torch.arange(len(shown))
    read = [EVERYTHING[i] for i in cosines.argmax(1).tolist()]
    matching = cosines[rows, right]
    other = torch.tensor([_other(int(i), random) for i in right])
    near = torch.tensor([_near(what, random) for what in shown])

    def share(part: str) -> float:
        return float(np.mean([getattr(a, part) == getattr(b, part) for a, b in zip(read, shown, strict=True)]))

    return Accuracy(
        pictures=len(shown),
        exact=float((cosines.argmax(1) == right).double().mean()),
        shape=share("shape"),
        colour=share("colour"),
        size=share("size"),
        background=share("background"),
        pairs=float((matching > cosines[rows, other]).double().mean()),
        nearly=float((matching > cosines[rows, near]).double().mean()),
        matching=float(matching.mean()),
        mismatched=float(cosines[rows, other].mean()),
    )


def _other(right: int, random: np.random.Generator) -> int:
    """Any description but this one."""
    return (right + int(random.integers(1, len(EVERYTHING)))) % len(EVERYTHING)


def _near(what: Description, random: np.random.Generator) -> int:
    """A description that differs in one part."""
    differing = [i for i, other in enumerate(EVERYTHING) if _differences(what, other) == 1]
    return differing[int(random.integers(len(differing)))]


def _differences(a: Description, b: Description) -> int:
    return sum(getattr(a, part) != getattr(b, part) for part in ("shape", "colour", "size", "background"))


# -- what is written -------------------------------------------------------------------------------------------------------------

SUMMARY = "a toy for tests and for trying out: it knows drawn shapes, their colors, sizes and backgrounds, and no other word"

CARD = """# shapes

A CLIP of {parameters:,} parameters that reads pictures of shapes and captions of them. Images, CLIPScore and the policies that
learn from outputs are tested with it, and `make demo-images` plays with it, without a download.

* Architecture: open_clip's own classes; {dim} dimensions, length one.
  Image tower: {vision}. Text tower: {text}.
* Files: `model.json` (open_clip's `model_cfg` and `preprocess_cfg`), `weights.safetensors` (float16), `tokens.json` (the
  {tokens} ids of open_clip's tokenizer that are kept; the place in the list is the new id).
* Data: drawn by this project while training (`examples/painters_parts/drawing.py`). 8 shapes x 8 colours x 2 sizes x 4
  backgrounds are 512
  descriptions, of which {known} were trained on. Place, angle, radius, shade and grain are chance; captions have several
  phrasings and leave parts unsaid.
* Training: from random weights, `{command}`: {steps} steps of {batch} pictures, AdamW, seed {seed},
  {minutes:.1f} minutes of one CPU core.
* Licence: Apache-2.0, as everything here. No other data and no other weights went into it.

## Accuracy

Measured on the files as saved, on pictures drawn with seeds that training did not use. Zero-shot: the caption with the largest
cosine of all 512 (`a small red circle on a white background` ...).

| | {known} descriptions that were trained on | {new} that never were |
| --- | --- | --- |
{rows}

## Limits

It knows eight shapes, eight colours, two sizes, four backgrounds and the words for them. Other words are dropped, and other
pictures get a vector that means nothing. It was trained on one shape per picture. Cosines are those of this model:
compare them with each other, never with another CLIP's. For real pictures, use a real CLIP: `open-clip` takes any model and
checkpoint of open_clip.
"""

ROWS = {
    "pictures": "pictures",
    "pairs": "the right caption beats a random other",
    "nearly": "the right caption beats one that differs in one word",
    "exact": "exact caption of 512",
    "shape": "right shape",
    "colour": "right colour",
    "size": "right size",
    "background": "right background",
    "matching": "mean cosine, right caption",
    "mismatched": "mean cosine, random other caption",
}


def card(clip: Clip, known: Accuracy, new: Accuracy, *, command: str, seed: int, steps: int, batch: int, minutes: float) -> str:
    """The model card."""
    vision, text = clip.model_cfg["vision_cfg"], clip.model_cfg["text_cfg"]
    rows = "\n".join(f"| {label} | {_cell(known, name)} | {_cell(new, name)} |" for name, label in ROWS.items())
    return CARD.format(
        parameters=sum(p.numel() for p in clip.model.parameters()),
        vision=_said(vision),
        text=_said(text),
        dim=clip.model_cfg["embed_dim"],
        tokens=len(clip.vocabulary.tokens),
        known=len(split(seed)[0]),
        new=len(split(seed)[1]),
        command=command,
        steps=steps,
        batch=batch,
        seed=seed,
        minutes=minutes,
        rows=rows,
    )


def _cell(accuracy: Accuracy, name: str) -> str:
    value = getattr(accuracy, name)
    return str(value) if name == "pictures" else f"{value:.3f}"


def _said(tower: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in tower.items())


def pooled(seeds: int, clip: Clip, shown: list[Description], *, seed: int) -> Accuracy:
    """The mean over `seeds` new pictures of each description."""
    parts = [measure(clip, shown, seed=seed + 1000 + i) for i in range(seeds)]
    means = {name: float(np.mean([getattr(part, name) for part in parts])) for name in ROWS if name != "pictures"}
    return Accuracy(pictures=sum(part.pictures for part in parts), **means)


def main() -> int:
    """Exit code 1 where the saved model misses its targets."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_clip", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, default=clips.FOLDER)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    started = time.process_time()
    trained = train(seed=chosen.seed, steps=chosen.steps, size=chosen.batch)
    minutes = (time.process_time() - started) / 60.0
    clips.save(trained, chosen.out, summary=SUMMARY)
    saved = clips.load(chosen.out)
    known, new = (pooled(5, saved, shown, seed=chosen.seed) for shown in split(chosen.seed))
    for name, label in ROWS.items():
        print(f"{label:<55} {_cell(known, name):>8} {_cell(new, name):>8}")
    command = f"python -m tools.train_clip --seed {chosen.seed}"
    text = card(saved, known, new, command=command, seed=chosen.seed, steps=chosen.steps, batch=chosen.batch, minutes=minutes)
    (chosen.out / "README.md").write_text(text)
    size = sum(path.stat().st_size for path in chosen.out.iterdir())
    print(f"{chosen.out}: {size:,} bytes, {minutes:.1f} minutes")
    return 0 if known.pairs >= 0.95 and known.exact > 0.7 and size <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
