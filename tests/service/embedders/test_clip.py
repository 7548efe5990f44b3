"""CLIP by open_clip, on a small model with random weights, and on the one that is shipped."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from service.embedders import checkpoints, registry
from service.embedders.base import EmbedderUnavailable, InvalidContent, Sources, UnknownEmbedder
from service.embedders.queue import EmbeddingQueue
from tests.service.pictures import WORDS, file, picture, write_clip

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["a red circle on blue", "Green SQUARE", "circle", "a large red zebra circle on blue", ""]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A folder of models that holds `tiny`."""
    models = tmp_path_factory.mktemp("models")
    write_clip(models / "tiny")
    return Sources(models=models)


@pytest.fixture(scope="module")
def tiny(sources: Sources) -> Any:
    return registry.spec("open-clip/tiny", sources).load()


# -- names ---------------------------------------------------------------------------------------------------------------------


def test_names_become_an_identity(sources: Sources) -> None:
    def identity(model: str | None, checkpoint: str | None, **changes: Any) -> str:
        return checkpoints.identity(model, checkpoint, Sources(models=sources.models, **changes))

    assert identity("tiny", None) == "open-clip/tiny"
    assert identity("ViT-B-32", "laion2b_s34b_b79k") == "open-clip/ViT-B-32/laion2b_s34b_b79k"
    assert identity(None, None, open_clip="tiny") == "open-clip/tiny"
    assert identity(None, None, open_clip="RN50:yfcc15m") == "open-clip/RN50/yfcc15m"


@pytest.mark.parametrize(
    ("model", "checkpoint", "field"),
    [
        ("../tiny", None, "model"),
        ("/etc", None, "model"),
        (".hidden", None, "model"),
        ("hf-hub:org/repo", "x", "model"),
        ("ViT-B-32", "../../etc/passwd", "checkpoint"),
        ("ViT-B-32", "/etc/passwd", "checkpoint"),
        ("ViT-B-32", "a\\b.pt", "checkpoint"),
        ("ViT-B-32", "a\nb", "checkpoint"),
        ("ViT-B-32", None, "checkpoint"),
        ("tiny", "x.pt", "checkpoint"),
        (None, "x.pt", "checkpoint"),
    ],
)
def test_paths_and_halves_of_a_choice_are_refused(sources: Sources, model: str, checkpoint: str, field: str) -> None:
    with pytest.raises(checkpoints.InvalidChoice) as caught:
        checkpoints.identity(model, checkpoint, sources)
    assert caught.value.field == field


@pytest.mark.parametrize("identity", ["open-clip/", "open-clip/../x", "open-clip/a/b/c", "open-clip/a/../../b"])
def test_an_identity_that_no_choice_leads_to_is_unknown(sources: Sources, identity: str) -> None:
    with pytest.raises(UnknownEmbedder):
        registry.spec(identity, sources)


def test_the_dimension_of_any_architecture_is_known_without_importing_open_clip() -> None:
    code = """
import sys
from service.embedders import registry
print([registry.spec(f"open-clip/{name}/x").dim for name in ("ViT-B-32", "RN50", "ViT-L-14", "ViT-H-14")],
      "open_clip" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[512, 1024, 768, 1024] False"


def test_what_is_not_there_is_named_with_what_to_do(sources: Sources) -> None:
    with pytest.raises(EmbedderUnavailable, match="no model 'nothing'"):
        registry.spec("open-clip/nothing/x", sources)
    with pytest.raises(EmbedderUnavailable, match=r"no file mine\.safetensors for it; put it into NEXTARM_MODELS"):
        registry.spec("open-clip/ViT-B-32/mine.safetensors", sources).version()
    with pytest.raises(EmbedderUnavailable, match="set NEXTARM_MODELS"):
        registry.spec("open-clip/ViT-B-32/mine.safetensors", Sources()).version()
    with pytest.raises(EmbedderUnavailable, match=r"'guess' is no pretrained tag of it \(known: openai, "):
        registry.spec("open-clip/ViT-B-32/guess", sources).version()


def test_a_checkpoint_that_is_not_in_the_cache_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, sources: Sources) -> None:
    from service.embedders import clip

    asked: list[Any] = []

    def download(tag: Any) -> str:
        asked.append(tag)
        return "/nowhere"

    monkeypatch.setattr(clip.package(), "download_pretrained", download)
    known = registry.spec("open-clip/ViT-B-32/laion2b_s34b_b79k", sources)
    for attempt in (known.version, known.load, known.fetch):
        with pytest.raises(EmbedderUnavailable, match="NEXTARM_ALLOW_DOWNLOADS=1"):
            attempt()
    assert asked == []
    allowed = registry.spec("open-clip/ViT-B-32/laion2b_s34b_b79k", Sources(allow_downloads=True))
    with pytest.raises(EmbedderUnavailable, match="NEXTARM_ALLOW_DOWNLOADS=1"):
        allowed.load()  # as a decision would: never in the middle of a request
    assert asked == []
    allowed.fetch()
    assert len(asked) == 1


# -- the small model -----------------------------------------------------------------------------------------------------------


def test_texts_and_images_have_length_one_in_one_space(tiny: Any) -> None:
    texts = tiny.embed(TEXTS)
    pictures = tiny.embed_images([tiny.read(file(picture(red=red))) for red in (0, 120, 250)])
    assert (texts.shape, pictures.shape) == ((5, 12), (3, 12))
    assert texts.dtype == pictures.dtype == np.float32
    assert np.linalg.norm(np.concatenate([texts, pictures]), axis=1) == pytest.approx(np.ones(8), abs=1e-6)
    assert tiny.embed([]).shape == tiny.embed_images([]).shape == (0, 12)


def test_a_content_alone_agrees_with_itself_in_company(tiny: Any) -> None:
    pixels = [tiny.read(file(picture(red=red))) for red in (0, 120, 250)]
    assert tiny.embed(TEXTS) == pytest.approx(np.concatenate([tiny.embed([text]) for text in TEXTS]), abs=1e-6)
    assert tiny.embed_images(pixels) == pytest.approx(np.concatenate([tiny.embed_images([one]) for one in pixels]), abs=1e-6)


def test_it_computes_what_open_clips_own_towers_compute(sources: Sources, tiny: Any) -> None:
    """By hand: open_clip's classes, its ids renumbered word by word, and the pixels normalised with numpy."""
    import open_clip
    from safetensors.torch import load_file

    folder = cast(Path, sources.models) / "tiny"
    config = json.loads((folder / "model.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "weights.safetensors").items()})
    kept = json.loads((folder / "tokens.json").read_text())
    whole = open_clip.SimpleTokenizer()(["a red circle on blue"], context_length=10)[0].tolist()
    ids = torch.tensor([[kept.index(token) for token in whole]])
    square = picture(size=(16, 16))
    pixels = torch.from_numpy((np.asarray(square, dtype=np.float32) / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        text = model.encode_text(ids, normalize=True)[0].numpy()
        image = model.encode_image(pixels, normalize=True)[0].numpy()
    assert tiny.embed(["a red circle on blue"])[0] == pytest.approx(text, abs=1e-6)
    assert tiny.embed_images([tiny.read(file(square))])[0] == pytest.approx(image, abs=1e-5)


def test_words_that_the_model_does_not_know_are_dropped_and_long_texts_cut(tiny: Any) -> None:
    with_zebra, without = tiny.embed(["a red zebra circle", "a red circle"])
    assert with_zebra == pytest.approx(without, abs=1e-6)
    long = tiny.embed([" ".join(WORDS * 50), " ".join(WORDS)])
    assert long[0] == pytest.approx(long[1], abs=1e-6)  # eight words are all that fit beside start and end
    assert tiny.embed(["circle " * 100_000]).shape == (1, 12)


def test_an_image_is_one_content_whatever_file_holds_it(tiny: Any) -> None:
    one, other = (tiny.embed_images([tiny.read(file(kind=kind, **options))]) for kind, options in _LOSSLESS)
    assert one == pytest.approx(other, abs=1e-6)
    with pytest.raises(InvalidContent):
        tiny.read(b"no image")


_LOSSLESS: list[tuple[str, dict[str, Any]]] = [("PNG", {}), ("WEBP", {"lossless": True})]


def test_a_local_checkpoint_of_an_architecture_is_read(tmp_path: Path) -> None:
    """A published architecture with weights of one's own, as a file of open_clip's training writes it."""
    from service.embedders import clip

    open_clip: Any = clip.package()
    torch.manual_seed(4)
    model = open_clip.create_model("ViT-S-32", pretrained=None)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "mine.pt")
    known = registry.spec("open-clip/ViT-S-32/mine.pt", Sources(models=tmp_path))
    embedder: Any = known.load()
    assert known.dim == 384
    assert embedder.version.startswith("open-clip-torch 3.")
    assert " ViT-S-32 mine.pt sha256:" in embedder.version
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer("ViT-S-32")(["a red circle"]), normalize=True)[0].numpy()
    assert embedder.embed(["a red circle"])[0] == pytest.approx(expected, abs=1e-6)
    assert embedder.embed_images([embedder.read(file())]).shape == (1, 384)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(EmbedderUnavailable):
        registry.spec("open-clip/ViT-S-32/trap.pt", Sources(models=tmp_path)).load()
    assert not (tmp_path / "ran").exists()


# -- through the queue ---------------------------------------------------------------------------------------------------------


async def test_texts_and_images_share_one_model_and_each_content_is_embedded_once(sources: Sources) -> None:
    queue = EmbeddingQueue(find=lambda name: registry.spec(name, sources))
    contents: list[str | bytes] = ["a red circle", file(), "a red circle", file(picture(red=9)), file()]
    rows = await queue.embed_many("open-clip/tiny", contents)
    again = await asyncio.gather(*(queue.embed("open-clip/tiny", content) for content in contents))
    assert np.array_equal(rows, np.stack(again))
    counts = queue.counts()["open-clip/tiny"]
    assert (counts.embedded, counts.passes, counts.cached) == (3, 1, 5)
    queue.close()


async def test_a_text_of_an_images_bytes_is_another_content(sources: Sources) -> None:
    queue = EmbeddingQueue(find=lambda name: registry.spec(name, sources))
    await queue.embed("open-clip/tiny", "circle")
    with pytest.raises(InvalidContent, match="is cut off or damaged"):
        await queue.embed("open-clip/tiny", b"circle")
    queue.close()


async def test_a_picture_that_cannot_be_read_harms_no_other_of_its_batch(sources: Sources) -> None:
    queue = EmbeddingQueue(find=lambda name: registry.spec(name, sources))
    broken = file()[:-40] + b"\0" * 40
    good, bad, text = await asyncio.gather(
        queue.embed("open-clip/tiny", file()),
        queue.embed_many("open-clip/tiny", ["circle", file(), broken]),
        queue.embed("open-clip/tiny", "circle"),
        return_exceptions=True,
    )
    assert isinstance(bad, InvalidContent)
    assert bad.position == 2
    assert isinstance(good, np.ndarray)
    assert isinstance(text, np.ndarray)
    queue.close()


async def test_images_that_wait_are_counted_in_bytes(sources: Sources) -> None:
    from service.embedders.base import QueueFull

    large = [file(picture(red=red, size=(60, 60))) for red in range(6)]
    queue = EmbeddingQueue(find=lambda name: registry.spec(name, sources), waiting_bytes=3 * len(large[0]), batch=1)
    first = asyncio.create_task(queue.embed_many("open-clip/tiny", large[:3]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await queue.embed_many("open-clip/tiny", large[3:])
    await first
    assert (await queue.embed_many("open-clip/tiny", large[3:])).shape == (3, 12)
    queue.close()


# -- the shipped one -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (checkpoints.BUNDLED / "shapes").is_dir(), reason="no model is shipped")
def test_the_shipped_model_tells_colours_apart() -> None:
    from PIL import Image, ImageDraw

    known = registry.spec("open-clip/shapes")
    assert (known.licence, known.unit_norm) == ("Apache-2.0", True)
    assert sum(path.stat().st_size for path in (checkpoints.BUNDLED / "shapes").iterdir()) <= 2_000_000
    embedder: Any = known.load()
    colours = ("red", "blue")
    pixels = []
    for colour in colours:
        drawn = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(drawn).ellipse((16, 16, 48, 48), fill=colour)
        pixels.append(embedder.read(file(drawn)))
    cosines = embedder.embed([f"a {colour} circle" for colour in colours]) @ embedder.embed_images(pixels).T
    assert cosines[0, 0] > cosines[0, 1]
    assert cosines[1, 1] > cosines[1, 0]


@pytest.mark.parametrize(
    "text", ["", "a cat", "the quick brown fox, 42 times! " * 40, "caf\u00e9 \u6771\u4eac " * 90, "x" * 9_000]
)
def test_pieces_are_those_of_open_clip(text: str) -> None:
    from service.embedders import clip
    from service.embedders.base import Tally

    tokenizer: Any = clip.package().SimpleTokenizer()
    expected = tokenizer([text[: clip.MAX_CHARACTERS]])
    assert clip.Words(tokenizer, context_length=77)([text], "start", Tally()).tolist() == expected.tolist()
