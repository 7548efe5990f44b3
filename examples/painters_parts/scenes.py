"""The five scenes of the demo: which painters are for hire, what is asked of them, who takes part, and what counts.

    pak-ucb      three specialists, 64 prompts     highest CLIPScore: whom to ask for which prompt?
    dak-ucb      all five, 16 prompts              nearly that CLIPScore, but not the same picture again and again
    mixture-ucb  all five with a free hand         which mixture of painters fills the most varied wall?
    fd-ucb       all five with a free hand         who paints like these pictures?
    promptwise   all five at their prices          an accepted picture per prompt, for little money

What a scene's numbers hang on is said here and not left to a policy's defaults, so that the demo does not move with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image

from examples.painters_parts import attempts, scores
from examples.painters_parts.attempts import ATTEMPTS, COST_WEIGHT, PASSING
from examples.painters_parts.clip import Clip
from examples.painters_parts.drawing import COLOURS, SHAPES, Description, Touch, draw
from examples.painters_parts.gallery import Gallery, Served, asked, hang
from examples.painters_parts.painters import PAINTERS, WISHES, Wish
from examples.painters_parts.play import Entrant

Score = Callable[[Gallery, Served], float]
Baseline = Callable[[Gallery], Served]
Values = Mapping[str, Mapping[str, float]]
"""label -> column -> number."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of a row. form: how it is written.  better: +1 where more of it is better, -1 where less is."""

    name: str
    score: Score
    form: str = "{:.2f}"
    better: int = 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A world and who plays in it.

    columns: the first is what the scene is about.
    baselines: label -> what a choice without learning serves.  beside: those that the picture shows with random; empty: the two
    best.  references: posted before the first decision.
    claim: what the scene is to show.  holds: whether it did, from the numbers of all rows by label.
    """

    key: str
    title: str
    question: str
    gallery: Gallery
    entrants: Sequence[Entrant]
    baselines: Mapping[str, Baseline]
    columns: Sequence[Column]
    claim: str
    holds: Callable[[Values], bool]
    beside: Sequence[str] = ()
    references: Sequence[Image.Image] = field(default_factory=tuple)


CLIP_SCORE = Column(name="CLIPScore", score=scores.clip_score, form="{:.3f}")
RIGHT = Column(name="right", score=scores.right, form="{:.0%}")
VENDI = Column(name="Vendi", score=scores.vendi_score, form="{:.1f}")
CONDITIONAL = Column(name="Vendi per prompt", score=scores.conditional_score, form="{:.2f}")
RKE = Column(name="RKE", score=scores.rke_score, form="{:.1f}")


def _price(gallery: Gallery, served: Served) -> float:
    """Mean price of a call; one per round, that brings all its pictures."""
    return float(gallery.prices[served[:, 1]].mean())


PRICE = Column(name="price", score=_price, better=-1)


def _alone(gallery_painters: Sequence[str]) -> dict[str, Baseline]:
    return {f"{name} alone": partial(scores.fixed, arm=arm) for arm, name in enumerate(gallery_painters)}


def _baselines(names: Sequence[str], *, seed: int) -> dict[str, Baseline]:
    return {"random": partial(scores.random, seed=seed), **_alone(names)}


def _gallery(
    names: Sequence[str],
    wishes: Sequence[Wish],
    *,
    rounds: int,
    clip: Clip,
    seed: int,
    each: Callable[[], object],
    count: int = 1,
) -> Gallery:
    wanted = asked(wishes, rounds=rounds, seed=seed)
    prompted = any(wish.shape for wish in wishes)
    return hang([PAINTERS[name] for name in names], wanted, clip=clip, seed=seed, count=count, prompted=prompted, each=each)


def _best(rows: Values, column: str, *, but: Sequence[str]) -> float:
    """The largest number of all other rows."""
    return max(values[column] for label, values in rows.items() if label not in but)


# -- the scenes ------------------------------------------------------------------------------------------------------------------


def specialists(*, clip: Clip, rounds: int, seed: int, each: Callable[[], object]) -> Scene:
    """PAK-UCB: no painter is good at everything."""
    names = ("stencil", "ember", "splash")
    return Scene(
        key="pak-ucb",
        title="PAK-UCB: the right specialist for each prompt",
        question="64 prompts; reward = the server's CLIPScore of prompt and posted picture",
        gallery=_gallery(names, WISHES, rounds=rounds, clip=clip, seed=seed, each=each),
        entrants=[_pak()],
        baselines=_baselines(names, seed=seed),
        columns=(CLIP_SCORE, RIGHT, VENDI, RKE, PRICE),
        claim="a higher CLIPScore than random and than every painter alone",
        holds=lambda rows: rows["pak-ucb"]["CLIPScore"] > _best(rows, "CLIPScore", but=("pak-ucb",)),
    )


def _pak() -> Entrant:
    policy = {"kind": "pak-ucb", "bandwidth": 1.0, "exploration": 0.1}
    return Entrant(label="pak-ucb", policy=policy, embeds=("prompt", "output"), reward={"source": "clip-score"})


def variety(*, clip: Clip, rounds: int, seed: int, each: Callable[[], object]) -> Scene:
    """DAK-UCB: the best score comes from the painter who always paints the same."""
    names = tuple(PAINTERS)
    random = np.random.default_rng(0)
    wishes = [Wish(shape, colour) for shape in SHAPES for colour in random.choice(list(COLOURS), size=2, replace=False)]
    return Scene(
        key="dak-ucb",
        title="DAK-UCB: as faithful, but never the same picture again",
        question="16 prompts, again and again; reward = CLIPScore; Vendi per prompt = conditional Vendi score of the pictures",
        gallery=_gallery(names, wishes, rounds=rounds, clip=clip, seed=seed, each=each),
        entrants=[
            Entrant(
                label="dak-ucb",
                policy={
                    "kind": "dak-ucb",
                    "output_bandwidth": scores.OUTPUT_BANDWIDTH,
                    "prompt_bandwidth": 1.0,
                    "normalise_labels": True,
                    "diversity_weight": 0.6,
                    "exploration": 0.1,
                    "diversity_exploration": 0.1,
                },
                embeds=("prompt", "output"),
                reward={"source": "clip-score"},
            ),
            _pak(),
        ],
        baselines=_baselines(names, seed=seed),
        columns=(CONDITIONAL, CLIP_SCORE, RIGHT, RKE, PRICE),
        claim="more variety per prompt than pak-ucb, at a CLIPScore that is at most 5 % lower",
        holds=_more_varied_and_as_faithful,
        beside=("postcard alone", "atelier alone"),
    )


def _more_varied_and_as_faithful(rows: Values) -> bool:
    dak, pak = rows["dak-ucb"], rows["pak-ucb"]
    return dak["Vendi per prompt"] > pak["Vendi per prompt"] and dak["CLIPScore"] >= 0.95 * pak["CLIPScore"]


def wall(*, clip: Clip, rounds: int, seed: int, each: Callable[[], object]) -> Scene:
    """Mixture-UCB: no painter alone is as varied as some together."""
    names = tuple(PAINTERS)
    return Scene(
        key="mixture-ucb",
        title="Mixture-UCB: the most varied wall",
        question="no prompt, the painters have a free hand; RKE = effective number of different pictures",
        gallery=_gallery(names, [Wish()], rounds=rounds, clip=clip, seed=seed, each=each),
        entrants=[
            Entrant(
                label="mixture-ucb",
                policy={
                    "kind": "mixture-ucb",
                    "objective": "rke",
                    "bandwidth": scores.OUTPUT_BANDWIDTH,
                    "delta_l": 0.2,
                    "initial_pulls": 3,
                },
                embeds=("output",),
            )
        ],
        baselines=_baselines(names, seed=seed),
        columns=(RKE, VENDI, PRICE),
        claim="a higher RKE than the best painter alone",
        holds=lambda rows: rows["mixture-ucb"]["RKE"] > _best(rows, "RKE", but=("mixture-ucb",)),
    )


def in_the_style_of(*, clip: Clip, rounds: int, seed: int, each: Callable[[], object]) -> Scene:
    """FD-UCB: reference pictures say what is wanted, no word does."""
    names = tuple(PAINTERS)
    references = evening(200, seed=seed)
    target = clip.images(references)
    return Scene(
        key="fd-ucb",
        title="FD-UCB: who paints like these?",
        question="200 reference pictures posted, no prompt; Frechet distance of what is served to them",
        gallery=_gallery(names, [Wish()], rounds=rounds, clip=clip, seed=seed, each=each, count=8),
        entrants=[
            Entrant(label="fd-ucb", policy={"kind": "fd-ucb", "bonus": "released", "bonus_scale": 0.05}, embeds=("output",))
        ],
        baselines=_baselines(names, seed=seed),
        columns=(
            Column(name="Frechet distance", score=partial(scores.distance, reference=target), form="{:.3f}", better=-1),
            VENDI,
            RKE,
            PRICE,
        ),
        claim="closer to the reference than random, and than every painter but the one who paints like it",
        holds=lambda rows: (
            rows["fd-ucb"]["Frechet distance"] < sorted(rows[label]["Frechet distance"] for label in rows if label != "fd-ucb")[1]
        ),
        references=references,
    )


def evening(count: int, *, seed: int) -> list[Image.Image]:
    """Reference pictures: shapes in red, orange, yellow and pink, after dark."""
    random = np.random.default_rng((seed, 13))
    pictures = []
    for _ in range(count):
        shape, colour, size, ground = (
            names[int(random.integers(len(names)))]
            for names in (list(SHAPES), ["red", "orange", "yellow", "pink"], ["small", "large"], ["black", "black", "brown"])
        )
        pictures.append(draw(Description(shape, colour, size, ground), random, touch=Touch()))
    return pictures


def until_accepted(*, clip: Clip, rounds: int, seed: int, each: Callable[[], object]) -> Scene:
    """PromptWise: ask again, or ask someone dearer?"""
    names = tuple(PAINTERS)
    alone = {
        f"{name} alone, up to {ATTEMPTS} calls": partial(attempts.same, arm=arm)
        for arm, name in enumerate(names)
        if name not in ("stencil", "ember")
    }
    return Scene(
        key="promptwise",
        title="PromptWise: an accepted picture for little money",
        question=f"accepted from CLIPScore {PASSING} on, up to {ATTEMPTS} calls; the client posts 1 or 0 and the price; "
        f"utility = accepted - {COST_WEIGHT} x price",
        gallery=_gallery(names, WISHES, rounds=rounds, clip=clip, seed=seed, each=each, count=ATTEMPTS),
        entrants=[
            Entrant(
                label="promptwise",
                policy={
                    "kind": "promptwise",
                    "cost_weight": COST_WEIGHT,
                    "max_attempts": ATTEMPTS,
                    "retry_discount": 0.5,
                    "exploration": 0.3,
                },
                embeds=("prompt",),
                passing=PASSING,
            )
        ],
        baselines={"random": partial(attempts.anyone, seed=seed), "cheap first": attempts.cheap_first, **alone},
        columns=(
            Column(name="utility", score=attempts.utility, form="{:.3f}"),
            Column(name="accepted", score=attempts.accepted, form="{:.0%}"),
            Column(name="CLIPScore", score=attempts.last_score, form="{:.3f}"),
            Column(name="price", score=attempts.price, better=-1),
            Column(name="calls", score=attempts.calls, better=-1),
        ),
        claim="more accepted for the money than any fixed order",
        holds=lambda rows: rows["promptwise"]["utility"] > _best(rows, "utility", but=("promptwise",)),
        beside=("cheap first", f"atelier alone, up to {ATTEMPTS} calls"),
    )
