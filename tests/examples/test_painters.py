"""Pictures, captions, painters, the small CLIP that is trained on them, and the numbers of the demo."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.painters_parts import attempts, report, scenes, scores
from examples.painters_parts import clip as clips
from examples.painters_parts.clip import FOLDER, Clip
from examples.painters_parts.drawing import (
    BACKGROUNDS,
    COLOURS,
    EVERYTHING,
    SHAPES,
    SIZE_WORDS,
    Description,
    Touch,
    caption,
    draw,
)
from examples.painters_parts.gallery import Gallery, asked, hang, png
from examples.painters_parts.painters import PAINTERS, WISHES, Wish
from examples.painters_parts.play import play
from examples.painters_parts.scenes import Scene
from service.embedders import checkpoints
from service.embedders import clip as served_clip
from service.embedders.base import Sources
from tests.service.http_client import Service, opened
from tools import train_clip

STILL = Touch(wander=0.0, turn=0.0, shade=0.0, grain=0.0)


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- drawing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_depends_on_the_description_and_the_generator_alone(shape: str) -> None:
    what = Description(shape, "turquoise", "small", "brown")
    first, again, other = (draw(what, rng(seed)).tobytes() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_without_chance_every_generator_draws_the_same() -> None:
    what = Description("moon", "red", "large", "grey")
    assert draw(what, rng(1), touch=STILL).tobytes() == draw(what, rng(2), touch=STILL).tobytes()


@pytest.mark.parametrize("what", EVERYTHING[::37], ids=caption)
def test_a_picture_has_the_colours_of_its_description(what: Description) -> None:
    pixels = np.asarray(draw(what, rng(), touch=STILL, pixels=48)).reshape(-1, 3)
    painted = (pixels == COLOURS[what.colour]).all(axis=1).mean()
    left = (pixels == BACKGROUNDS[what.background]).all(axis=1).mean()
    assert (pixels[0] == BACKGROUNDS[what.background]).all()
    assert 0.01 < painted < 0.5
    assert painted + left > 0.75  # the rest are edges


def test_a_circle_covers_its_area_and_a_ring_less_of_the_same() -> None:
    def area(shape: str) -> float:
        pixels = np.asarray(draw(Description(shape, "yellow", "large", "black"), rng(), touch=STILL, pixels=200), dtype=float)
        return float((pixels[..., 0] - 18.0).mean() / (248.0 - 18.0))

    assert area("circle") == pytest.approx(math.pi * 0.34**2, rel=0.02)  # the mean radius of `large`
    assert area("ring") == pytest.approx(math.pi * 0.34**2 * (1.0 - 0.58**2), rel=0.04)


def test_every_part_that_is_not_omitted_is_said_and_no_other() -> None:
    random = rng()
    for what in EVERYTHING[::5]:
        for omit in ((), ("size",), ("colour", "background")):
            words = caption(what, random, omit=omit).replace(",", "").split()
            assert what.shape in words
            assert (what.colour in words) == ("colour" not in omit)
            assert (what.background in words) == ("background" not in omit)
            assert bool(set(words) & set(SIZE_WORDS[what.size])) == ("size" not in omit)


def test_plain_captions_differ_for_all_descriptions() -> None:
    assert len(EVERYTHING) == 512
    assert len({caption(what) for what in EVERYTHING}) == 512


# -- painters ------------------------------------------------------------------------------------------------------------------


def share_met(name: str, wishes: list[Wish]) -> float:
    random = rng()
    return float(np.mean([wish.met(PAINTERS[name].paint(wish, random)[1]) for wish in wishes for _ in range(6)]))


def test_specialists_are_right_in_their_field_and_never_beyond() -> None:
    cornered = [wish for wish in WISHES if wish.shape in PAINTERS["stencil"].shapes]
    warm = [wish for wish in WISHES if wish.colour in PAINTERS["ember"].colours]
    assert share_met("stencil", cornered) == 1.0
    assert share_met("stencil", [wish for wish in WISHES if wish not in cornered]) == 0.0
    assert share_met("ember", warm) == 1.0
    assert share_met("ember", [wish for wish in WISHES if wish not in warm]) == 0.0


def test_generalists_are_right_but_the_sloppy_one() -> None:
    assert share_met("atelier", list(WISHES)) == 1.0
    assert share_met("postcard", list(WISHES)) == 1.0
    assert share_met("splash", list(WISHES)) == pytest.approx(1.0 - PAINTERS["splash"].slip, abs=0.07)


def test_the_postcard_is_one_picture_per_wish_and_everyone_else_varies() -> None:
    for name, painter in PAINTERS.items():
        random = rng()
        of_one_wish = {painter.paint(WISHES[9], random)[0].tobytes() for _ in range(8)}
        assert len(of_one_wish) == (1 if name == "postcard" else 8)
    assert len({PAINTERS["postcard"].paint(wish, rng())[0].tobytes() for wish in WISHES}) == len(WISHES)


# -- the small CLIP ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> Iterator[Clip]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield clips.load()
    torch.set_num_threads(threads)


def test_the_shipped_model_fits_in_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2 * 2**20


def test_its_words_are_those_of_the_captions(clip: Clip) -> None:
    assert clip.vocabulary == train_clip.vocabulary()
    tokens = json.loads((FOLDER / "tokens.json").read_text())
    assert tokens[0] == 0
    assert tokens[-2:] == [49406, 49407]  # start and end of text in open_clip's vocabulary


def test_texts_become_renumbered_tokens_and_unknown_words_are_dropped(clip: Clip) -> None:
    place = {token: new for new, token in enumerate(clip.vocabulary.tokens)}
    start, end = len(place) - 2, len(place) - 1
    expected = [start, place[320], place[736], place[1565], end]  # "a", "red", "star"; "!" may be token 0
    for text in ("a red star", "A crimson red !% zebra star!"):
        ids = clip.vocabulary.ids([text])[0].tolist()
        assert ids == expected + [0] * (clip.vocabulary.context_length - len(expected))
    long = clip.vocabulary.ids(["red " * 40])[0].tolist()
    assert long == [start, *[place[736]] * (len(long) - 2), end]


def test_it_reads_pictures_that_it_never_saw(clip: Clip) -> None:
    known, new = train_clip.split(0)
    seen = train_clip.measure(clip, known[::2], seed=90)
    unseen = train_clip.measure(clip, new, seed=90)
    assert seen.pictures > 200
    assert seen.pairs >= 0.98
    assert unseen.pairs >= 0.95
    assert seen.nearly >= 0.95
    assert seen.exact > 0.85
    assert min(seen.colour, seen.size, seen.background) > 0.97
    assert seen.matching > seen.mismatched + 0.5


def test_training_depends_on_the_seed_alone() -> None:
    first, again, other = (train_clip.train(seed=seed, steps=2, size=16).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


def test_the_service_reads_the_same_files_the_same_way(clip: Clip) -> None:
    reader = served_clip.load(checkpoints.spec("open-clip/shapes", Sources()))
    texts = ["a small red star on white", "a painting of a huge pink moon"]
    pictures = [draw(what, rng()) for what in EVERYTHING[::100]]
    np.testing.assert_allclose(reader.embed(texts), clip.texts(texts).numpy(), atol=1e-5)
    pixels = [reader.read(_png(picture)) for picture in pictures]
    np.testing.assert_allclose(reader.embed_images(pixels), clip.images(pictures).numpy(), atol=1e-5)


def _png(picture: Image.Image) -> bytes:
    return base64.b64decode(png(picture))


# -- the demo's numbers ----------------------------------------------------------------------------------------------------------


def tiny() -> Gallery:
    """Two rounds of one wish, two painters, two pictures per call; embeddings by hand: the first painter repeats itself."""
    blank = Image.new("RGB", (8, 8))
    e = torch.eye(4, dtype=torch.float64)
    return Gallery(
        painters=(PAINTERS["postcard"], PAINTERS["atelier"]),
        wishes=(WISHES[5], WISHES[5]),
        pictures=[[[blank] * 2] * 2] * 2,
        met=np.array([[[True, True], [True, False]]] * 2),
        texts=e[[0, 0]],
        images=torch.stack([torch.stack([e[[0, 0]], e[[1, 2]]]), torch.stack([e[[0, 0]], -e[[0, 3]]])]),
    )


def test_scores_of_served_pictures_are_those_of_their_definitions() -> None:
    world = tiny()
    same, varied = scores.fixed(world, 0), scores.fixed(world, 1)
    assert same.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert scores.clip_score(world, same) == 1.0
    assert scores.clip_score(world, varied) == 0.0  # a cosine of -1 counts as 0
    assert scores.right(world, varied) == 0.5
    assert scores.rke_score(world, same) == pytest.approx(1.0)
    assert scores.conditional_score(world, same) == pytest.approx(1.0)
    k = math.exp(-2.0 / (2.0 * scores.OUTPUT_BANDWIDTH**2))  # four pictures at right angles, of one prompt
    assert scores.rke_score(world, varied) == pytest.approx(16.0 / (4.0 + 12.0 * k**2))
    shares = np.array([(1.0 + 3.0 * k) / 4.0] + [(1.0 - k) / 4.0] * 3)
    vendi = math.exp(-float((shares * np.log(shares)).sum()))
    assert scores.vendi_score(world, varied) == pytest.approx(vendi)
    assert scores.conditional_score(world, varied) == pytest.approx(vendi)
    assert scores.distance(world, varied, reference=world.images[:, 1].reshape(-1, 4)) == pytest.approx(0.0, abs=1e-6)


def test_shares_count_each_stretch_of_the_rounds_by_itself() -> None:
    world = tiny()
    served = np.array([[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(scores.shares(world, served, bins=2), [[1.0, 0.0], [1 / 3, 2 / 3]])


def test_attempts_end_with_the_first_picture_that_passes() -> None:
    world = tiny()  # the postcard always passes, the atelier never does
    orders = np.array([[1, 1, 0], [0, 1, 1]])
    assert attempts.until_passed(world, orders).tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]


def test_a_gallery_is_the_same_for_the_same_seed(clip: Clip) -> None:
    wishes = asked(WISHES, rounds=3, seed=5)
    assert wishes == asked(WISHES, rounds=3, seed=5) != asked(WISHES, rounds=3, seed=6)

    def make(seed: int) -> Gallery:
        return hang([PAINTERS["splash"], PAINTERS["atelier"]], wishes, clip=clip, seed=seed, count=2)

    first, again, other = make(5), make(5), make(6)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (3, 2, 2, 64)
    assert first.met[:, 1].all()


def test_a_scene_is_a_picture_with_a_row_for_everyone_who_learned(clip: Clip, tmp_path: Path) -> None:
    scene = scenes.variety(clip=clip, rounds=20, seed=0, each=lambda: None)
    rows = [report.row(scene, label, scores.random(scene.gallery, seed=1), learned=True) for label in ("dak-ucb", "pak-ucb")]
    rows += [report.row(scene, label, baseline(scene.gallery), learned=False) for label, baseline in scene.baselines.items()]
    panel = report.Panel(scene=scene, rows=rows)
    assert [row.label for row in panel.shown] == ["dak-ucb", "pak-ucb", "random", "postcard alone", "atelier alone"]
    assert not panel.holds  # both served the same
    report.save_scene(tmp_path / "scene.png", panel, note="a test")
    report.save_overview(tmp_path / "all.png", [panel], note="a test")
    for name in ("scene.png", "all.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] == 2 * report.WIDTH


def test_a_strip_of_prompts_that_come_again_shows_one_of_them(clip: Clip) -> None:
    scene = scenes.variety(clip=clip, rounds=60, seed=0, each=lambda: None)
    served = report.chosen(scene.gallery, scores.random(scene.gallery, seed=1))
    wishes = [scene.gallery.wishes[t] for t in served[:, 0]]
    assert len(set(wishes)) == 1
    assert len(wishes) == min(report.SHOWN, scene.gallery.wishes.count(wishes[0]))


# -- over HTTP, in this process --------------------------------------------------------------------------------------------------


class InProcess:
    """The service without a socket, as the demo calls it; remembers the rewards that were learned."""

    def __init__(self, runner: asyncio.Runner, service: Service) -> None:
        self.runner, self.service = runner, service
        self.rewards: list[float] = []

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.runner.run(self.service.client.request(method, path, json=body))
        assert answer.is_success, answer.text
        if path.endswith("/outcome"):
            self.rewards.append(answer.json()["reward"])
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    with asyncio.Runner() as runner:
        opening = opened()
        service = runner.run(opening.__aenter__())
        yield InProcess(runner, service)
        runner.run(opening.__aexit__(None, None, None))


def played(api: InProcess, scene: Scene) -> dict[str, report.Row]:
    rows = {}
    for entrant in scene.entrants:
        name = f"{scene.key}-{entrant.label}"
        served = play(api, name, scene.gallery, entrant, seed=0, references=scene.references, each=lambda k: None)
        rows[entrant.label] = report.row(scene, entrant.label, served, learned=True)
    return rows


def test_the_server_scores_posted_pictures_as_the_demo_does(api: InProcess, clip: Clip) -> None:
    scene = scenes.specialists(clip=clip, rounds=20, seed=0, each=lambda: None)
    api.rewards.clear()
    row = played(api, scene)["pak-ucb"]
    t, k, i = row.served.T
    np.testing.assert_allclose(api.rewards, scene.gallery.scores[t, k, i], atol=1e-5)


def test_dak_ucb_serves_more_variety_than_pak_ucb_and_is_nearly_as_faithful(api: InProcess, clip: Clip) -> None:
    scene = scenes.variety(clip=clip, rounds=160, seed=0, each=lambda: None)
    rows = played(api, scene)
    assert scene.holds({label: row.values for label, row in rows.items()})


def test_the_learned_mixture_is_more_varied_than_the_best_painter(api: InProcess, clip: Clip) -> None:
    scene = scenes.wall(clip=clip, rounds=150, seed=0, each=lambda: None)
    rows = {label: row.values for label, row in played(api, scene).items()}
    alone = {label: {"RKE": scores.rke_score(scene.gallery, make(scene.gallery))} for label, make in scene.baselines.items()}
    assert scene.holds({**rows, **alone})


def test_attempts_end_with_an_accepted_picture_and_batches_are_posted_whole(api: InProcess, clip: Clip) -> None:
    scene = scenes.until_accepted(clip=clip, rounds=15, seed=0, each=lambda: None)
    served = played(api, scene)["promptwise"].served
    passed = (scene.gallery.scores[tuple(served.T)] >= attempts.PASSING).numpy()
    ends = np.append(served[1:, 0] != served[:-1, 0], True)
    assert passed.any()
    assert ends[passed].all()
    scene = scenes.in_the_style_of(clip=clip, rounds=6, seed=0, each=lambda: None)
    assert len(played(api, scene)["fd-ucb"].served) == 6 * 8
