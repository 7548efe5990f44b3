"""Which embedders and scorers there are, and loading one; pictures and references by content; rewards by scorers."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.embedders import registry
from service.embedders.base import Sources
from service.settings import Settings
from service.storage.base import Log
from tests.service.http_client import ARMS, Json, Service, answered, failed, opened, paths
from tests.service.pictures import file, picture, posted, write_clip

TINY: Json = {"embedder": "open-clip", "model": "tiny"}
SHOWN: Json = {
    "policy": {"kind": "pak-ucb", "random_features": 16},
    "arms": ARMS,
    "prompt": TINY,
    "output": {**TINY, "takes": "both"},
    "reward": {"source": "clip-score"},
    "seed": 7,
}
TEXTS: Json = {"policy": {"kind": "greedy"}, "arms": ARMS, "seed": 7}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "tiny")
    return folder


@pytest.fixture
async def clipped(models: Path) -> AsyncIterator[Service]:
    """A service whose default CLIP is the small random one."""
    async with opened(models=str(models), open_clip="tiny") as running:
        yield running


def embedded(models: Path, *contents: str | bytes) -> Any:
    """(n, 12), past every queue."""
    embedder: Any = registry.spec("open-clip/tiny", Sources(models=models)).load()
    rows = [
        embedder.embed([content])[0] if isinstance(content, str) else embedder.embed_images([embedder.read(content)])[0]
        for content in contents
    ]
    return np.stack(rows).astype(np.float64)


def vectors(logged: Json) -> Any:
    """(n, e) of a matrix in the log."""
    return np.frombuffer(base64.b64decode(logged["data"]), dtype="<f4").reshape(logged["rows"], logged["columns"])


# -- the list ------------------------------------------------------------------------------------------------------------------


async def test_every_embedder_and_scorer_is_listed_with_what_it_needs(clipped: Service) -> None:
    shown = answered(await clipped.get("/v1/embedders"))
    listed = {item["name"]: item for item in shown["embedders"]}
    assert list(listed) == ["vector", "minilm", "static", "open-clip", "imagenet"]
    assert (listed["open-clip"]["dim"], listed["open-clip"]["takes"]) == (12, ["text", "image", "vector"])
    assert "tiny sha256:" in listed["open-clip"]["version"]
    assert listed["imagenet"]["takes"] == ["image", "vector"]
    assert [item["name"] for item in shown["scorers"]] == ["clip-score", "exact-match", "regex", "json-valid", "length-penalty"]


async def test_what_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(open_clip="nothing") as service:
        listed = {item["name"]: item for item in answered(await service.get("/v1/embedders"))["embedders"]}
        assert not listed["open-clip"]["available"]
        assert "'nothing'" in listed["open-clip"]["reason"]


async def test_an_embedder_can_be_loaded_ahead(clipped: Service) -> None:
    warmed = answered(await clipped.post("/v1/embedders/open-clip/warm"))
    assert (warmed["embedder"], warmed["dim"]) == ("open-clip/tiny", 12)
    assert answered(await clipped.post("/v1/embedders/open-clip/warm", {"model": "tiny"})) == warmed
    assert failed(await clipped.post("/v1/embedders/bert/warm")) == (404, "not_found")
    assert paths(await clipped.post("/v1/embedders/vector/warm")) == ["embedder"]
    assert paths(await clipped.post("/v1/embedders/minilm/warm", {"model": "x"})) == ["model"]


async def test_warming_a_checkpoint_that_is_not_there_is_refused_and_not_to_be_retried(clipped: Service) -> None:
    response = await clipped.post("/v1/embedders/open-clip/warm", {"model": "RN50", "checkpoint": "x"})
    assert (failed(response), paths(response)) == ((422, "invalid_request"), ["checkpoint"])
    assert "retry-after" not in response.headers


async def test_a_warm_server_is_ready_whatever_becomes_of_it(models: Path) -> None:
    async with opened(models=str(models), open_clip="tiny", warm="open-clip, nothing, vector") as service:
        assert (await service.get("/readyz")).status_code == 200
        assert answered(await service.post("/v1/embedders/open-clip/warm"))["embedder"] == "open-clip/tiny"


@pytest.mark.parametrize("part", ["prompt", "output"])
async def test_a_family_of_models_has_no_silent_default(models: Path, part: str) -> None:
    (models / "mine.safetensors").touch()
    async with opened(models=str(models)) as service:
        refused = await service.put("/v1/bandits/b", {**SHOWN, part: {"embedder": "open-clip"}})
        assert failed(refused) == (422, "invalid_request")
        assert paths(refused) == [f"{part}.model"]
        for shown in (
            "shapes",
            "a toy for tests",
            "tiny",
            "mine.safetensors",
            "a pretrained tag of open_clip for everyday prompts",
        ):
            assert shown in refused.json()["detail"]
        assert paths(await service.post("/v1/embedders/open-clip/warm")) == ["model"]
        listed = {item["name"]: item for item in answered(await service.get("/v1/embedders"))["embedders"]}
        assert set(listed["open-clip"]["models"]) == {"shapes", "tiny"}
        assert "a toy" in listed["open-clip"]["models"]["shapes"]
        assert (listed["open-clip"]["available"], listed["open-clip"]["dim"], listed["open-clip"]["version"]) == (True, None, "")
        await service.create(body=SHOWN)


async def test_a_bandit_that_recorded_the_old_default_is_still_served(tmp_path: Path, models: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    body = {**SHOWN, "prompt": {"embedder": "open-clip"}, "output": {"embedder": "open-clip"}}
    async with opened(models=str(models), open_clip="tiny", store=store) as service:
        await service.create(body=body)
    async with opened(models=str(models), store=store) as service:
        assert (await service.put("/v1/bandits/b", body)).status_code == 200
        decision = await service.decide(body={"prompt": "a red circle"})
        await service.observe(decision["id"], {"output": {"image": posted(file())}})


async def test_a_bandit_is_created_when_its_embedders_are_loaded(
    clipped: Service, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    known: Any = type(registry.spec("open-clip/tiny", Sources(models=models)))
    original, begun, may_go_on = known.load, threading.Event(), threading.Event()

    def load(spec: Any) -> Any:
        begun.set()
        assert may_go_on.wait(60)
        return original(spec)

    monkeypatch.setattr(known, "load", load)
    creating = asyncio.create_task(clipped.create(body=SHOWN))
    await asyncio.to_thread(begun.wait, 60)
    readiness = await clipped.get("/readyz")
    assert (readiness.status_code, readiness.json()["warming"]) == (200, ["open-clip/tiny"])
    assert not creating.done()
    may_go_on.set()
    await creating
    assert "warming" not in answered(await clipped.get("/readyz"))


async def test_a_model_that_cannot_be_loaded_is_refused_at_creation(tmp_path: Path) -> None:
    write_clip(tmp_path / "models" / "tiny")
    (tmp_path / "models" / "tiny" / "tokens.json").write_text("[1, 2]")
    async with opened(models=str(tmp_path / "models")) as service:
        refused = await service.put("/v1/bandits/b", SHOWN)
        assert failed(refused) == (422, "invalid_request")
        assert paths(refused) == ["prompt.embedder"]
        assert answered(await service.get("/v1/bandits"))["bandits"] == []


async def test_the_embedders_of_stored_bandits_are_loaded_at_the_start(tmp_path: Path, models: Path) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(models=str(models), store=store) as service:
        await service.create(body=SHOWN)
    async with opened(models=str(models), store=store) as service:
        await service.bandit()
        services = service.client._transport.app.state.services  # type: ignore[attr-defined]
        assert services.embeddings.warming() == ["open-clip/tiny"] or services.embeddings.counts()["open-clip/tiny"].waiting == 0
        async with asyncio.timeout(60):
            while "warming" in (await service.get("/readyz")).json():
                await asyncio.sleep(0)
        await service.decide(body={"prompt": "a red circle"})


# -- what is read of a prompt ----------------------------------------------------------------------------------------------------

CHAT: list[Json] = [
    {"role": "system", "content": "green square"},
    {"role": "user", "content": "a red circle", "name": "ada"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
    {"role": "assistant", "content": "on red"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "a large blue"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "input_text", "text": "square"},
        ],
    },
    {"role": "tool", "content": "circle", "tool_call_id": "1"},
]
LAST = "a large blue\nsquare"
ALL = "green square\na red circle\non red\na large blue\nsquare\ncircle"


def chosen_by(event: Json) -> Any:
    """(d,) the features of a decision."""
    return np.frombuffer(base64.b64decode(event["features"]), dtype="<f4")


@pytest.mark.parametrize(("reads", "text"), [({}, LAST), ({"reads": "last_user"}, LAST), ({"reads": "conversation"}, ALL)])
async def test_of_messages_the_last_turn_of_the_user_is_read_or_all_of_them(
    clipped: Service, models: Path, reads: Json, text: str
) -> None:
    await clipped.create(body={**SHOWN, "prompt": {**TINY, **reads}})
    assert (await clipped.bandit())["prompt"].get("reads") == reads.get("reads")
    body = {"id": "chat", "prompt": {"messages": CHAT}}
    await clipped.decide(body=body)
    assert chosen_by((await clipped.log())[-1]) == pytest.approx(embedded(models, text)[0], abs=1e-5)
    assert (await clipped.post("/v1/bandits/b/decisions", body)).status_code == 200
    other = {**body, "prompt": {"messages": [*CHAT[:-2], {"role": "user", "content": LAST}]}}
    assert failed(await clipped.post("/v1/bandits/b/decisions", other)) == (409, "decision_conflict")
    batch = answered(await clipped.post("/v1/bandits/b/decisions/batch", {"decisions": [{"prompt": {"messages": CHAT}}]}))
    assert batch["decisions"][0]["arm"]
    assert chosen_by((await clipped.log())[-1]) == pytest.approx(embedded(models, text)[0], abs=1e-5)


async def test_pairs_of_references_take_messages(clipped: Service, models: Path) -> None:
    policy = {"kind": "dak-ucb", "diversity": "jkd", "output_bandwidth": 1.0}
    await clipped.create(body={"policy": policy, "arms": ARMS, "prompt": TINY, "output": TINY, "seed": 7})
    pairs = [{"prompt": {"messages": CHAT}, "output": "red"}]
    assert (await clipped.post("/v1/bandits/b/references", {"pairs": pairs})).status_code == 201
    assert vectors((await clipped.log())[-1]["prompts"]) == pytest.approx(embedded(models, LAST), abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "path"),
    [
        ({"messages": [{"role": "assistant", "content": "red"}]}, "prompt.messages"),
        ({"messages": [{"role": "user", "content": []}]}, "prompt.messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "prompt.messages"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "prompt.messages"),
        ({"messages": []}, "prompt.messages"),
        ({"messages": [{"content": "red"}]}, "prompt.messages.0.role"),
        ({"messages": CHAT, "text": "red"}, "prompt"),
    ],
)
async def test_messages_that_say_nothing_are_refused(clipped: Service, prompt: Json, path: str) -> None:
    await clipped.create(body=SHOWN)
    refused = await clipped.post("/v1/bandits/b/decisions", {"prompt": prompt})
    assert failed(refused) == (422, "invalid_request")
    assert paths(refused) == [path]
    assert await clipped.offset() == 1


async def test_of_a_long_text_the_part_is_read_that_the_bandit_names(clipped: Service, models: Path) -> None:
    """The model reads eight pieces."""
    start, middle, end = "a red circle on", "green green green", "a large blue square"
    text = " ".join((start, middle, end))
    read = {None: f"{start} {middle} a", "start": f"{start} {middle} a", "both": f"{start} {end}", "end": f"on {middle} {end}"}
    for keep, part in read.items():
        name = f"b-{keep}".lower()
        await clipped.create(name, body={**SHOWN, "prompt": {**TINY, **({"keep": keep} if keep else {})}})
        await clipped.decide(name, {"prompt": text})
        assert chosen_by((await clipped.log(name))[-1]) == pytest.approx(embedded(models, part)[0], abs=1e-5), keep
    services = clipped.client._transport.app.state.services  # type: ignore[attr-defined]
    assert services.embeddings.counts()["open-clip/tiny"].cut == 3
    assert 'nextarm_texts_cut_total{embedder="open-clip/tiny"} 3.0' in (await clipped.get("/metrics")).text
    body = {**SHOWN, "prompt": {"dim": 12, "keep": "end"}, "reward": {"source": "client"}}
    assert paths(await clipped.put("/v1/bandits/c", body)) == ["prompt.keep"]


async def test_words_that_a_small_model_does_not_know_are_counted(clipped: Service) -> None:
    await clipped.create(body=SHOWN)
    for text in ("a red circle", "a red circle, large!", "translate this to French"):
        await clipped.decide(body={"prompt": text})
    assert 'nextarm_texts_unknown_total{embedder="open-clip/tiny"} 1.0' in (await clipped.get("/metrics")).text


async def test_how_much_of_a_text_is_read_is_listed(clipped: Service) -> None:
    listed = {item["name"]: item for item in answered(await clipped.get("/v1/embedders"))["embedders"]}
    assert (listed["minilm"]["reads"], listed["minilm"]["languages"]) == (
        "254 word pieces, about 1,000 characters of English",
        ["en"],
    )
    assert listed["open-clip"]["reads"].startswith("75 word pieces")
    assert (listed["imagenet"]["reads"], listed["vector"]["languages"]) == ("", [])


# -- creation ------------------------------------------------------------------------------------------------------------------


async def test_the_log_keeps_which_model_it_was(clipped: Service, models: Path) -> None:
    await clipped.create(body={**SHOWN, "prompt": {"embedder": "open-clip"}})
    created = (await clipped.log())[0]
    version = registry.spec("open-clip/tiny", Sources(models=models)).version()
    assert (created["prompt_embedder"], created["output_embedder"]) == ("open-clip/tiny", "open-clip/tiny")
    assert created["prompt_version"] == created["output_version"] == version
    assert created["dim"] == 12
    shown = await clipped.bandit()
    assert shown["prompt"] == {"embedder": "open-clip/tiny", "dim": 12, "version": version}
    assert shown["reward"]["source"] == "clip-score"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"prompt": {"embedder": "open-clip", "model": "../tiny"}}, "prompt.model"),
        ({"prompt": {"embedder": "open-clip", "model": "ViT-B-32"}}, "prompt.checkpoint"),
        ({"prompt": {"embedder": "open-clip", "model": "ViT-B-32", "checkpoint": "laion2b_s34b_b79k"}}, "prompt.embedder"),
        ({"prompt": {"embedder": "open-clip/tiny"}}, "prompt.embedder"),
        ({"prompt": {**TINY, "dim": 13}}, "prompt.dim"),
        ({"prompt": {"embedder": "vector", "dim": 3, "model": "tiny"}}, "prompt.model"),
        ({"prompt": {**TINY, "classes": ["a", "b"]}}, "prompt.classes"),
        ({"prompt": {"dim": 3, "takes": "text"}, "output": None, "reward": {"source": "client"}}, "prompt.takes"),
        ({"output": {**TINY, "takes": "image"}, "reward": {"source": "json-valid"}}, "output.takes"),
        ({"output": {**TINY, "takes": "film"}}, "output.takes"),
        ({"output": {**TINY, "classes": ["a", "b"]}}, "output.classes"),
        ({"output": {"embedder": "imagenet"}}, "reward.source"),
        ({"output": None}, "reward.source"),
        ({"prompt": {"embedder": "vector", "dim": 12}, "output": {"embedder": "vector", "dim": 12}}, "reward.source"),
        ({"reward": {"source": "clip-score", "target": 3}}, "reward.target"),
        ({"reward": {"source": "regex"}}, "reward.pattern"),
        ({"reward": {"source": "regex", "pattern": "("}}, "reward.pattern"),
        ({"reward": {"source": "client", "pattern": "x"}}, "reward.pattern"),
        ({"reward": {"source": "client", "override": True}}, "reward.override"),
        ({"reward": {"source": "nobody"}}, "reward.source"),
    ],
)
async def test_what_cannot_work_is_refused_at_creation(clipped: Service, change: Json, path: str) -> None:
    refused = await clipped.put("/v1/bandits/b", {**SHOWN, **change})
    assert failed(refused) == (422, "invalid_request")
    assert paths(refused) == [path]


async def test_a_model_that_vanished_is_a_503_that_logs_nothing(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "models" / "tiny")
    store = f"sqlite:///{tmp_path}/bandits.db"
    async with opened(models=str(tmp_path / "models"), open_clip="tiny", store=store) as service:
        await service.create(body=SHOWN)
    folder.rename(tmp_path / "elsewhere")
    async with opened(models=str(tmp_path / "models"), open_clip="tiny", store=store) as service:
        assert failed(await service.post("/v1/bandits/b/decisions", {"prompt": "a red circle"})) == (503, "overloaded")
        assert await service.offset() == 1


# -- pictures ------------------------------------------------------------------------------------------------------------------


async def test_a_picture_is_embedded_scored_and_learned(clipped: Service, models: Path) -> None:
    await clipped.create(body=SHOWN)
    decision = await clipped.decide(body={"prompt": "a red circle"})
    receipt = await clipped.observe(decision["id"], {"output": {"image": posted(file())}})
    text, image = embedded(models, "a red circle", file())
    assert receipt["reward"] == pytest.approx(max(0.0, float(text @ image)), abs=1e-5)
    logged = (await clipped.log())[-1]
    assert (logged["event"], logged["source"]) == ("observed", "clip-score")
    assert vectors(logged["output"])[0] == pytest.approx(image, abs=1e-5)
    again = await clipped.observe(decision["id"], {"output": {"image": posted(file())}})
    assert (again["duplicate"], again["offset"], again["reward"]) == (True, receipt["offset"], receipt["reward"])
    other = await clipped.put(
        f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"output": {"image": posted(file(picture(red=3)))}}
    )
    assert failed(other) == (409, "outcome_conflict")


async def test_several_samples_are_rewarded_by_their_mean(clipped: Service, models: Path) -> None:
    await clipped.create(body=SHOWN)
    decision = await clipped.decide(body={"prompt": {"image": posted(file())}})
    receipt = await clipped.observe(
        decision["id"], {"output": [{"image": posted(file(picture(red=7)))}, {"text": "a blue square"}]}
    )
    prompt, one, other = embedded(models, file(), file(picture(red=7)), "a blue square")
    assert receipt["reward"] == pytest.approx((max(0.0, prompt @ one) + max(0.0, prompt @ other)) / 2, abs=1e-5)


async def test_a_posted_reward_wins_only_where_the_bandit_allows_it(clipped: Service) -> None:
    for name, override in (("strict", False), ("open", True)):
        await clipped.create(name, body={**SHOWN, "reward": {"source": "clip-score", "override": override}})
    decision = await clipped.decide("strict", {"prompt": "a red circle"})
    refused = await clipped.put(f"/v1/bandits/strict/decisions/{decision['id']}/outcome", {"reward": 0.3, "output": "circle"})
    assert paths(refused) == ["reward"]
    decision = await clipped.decide("open", {"prompt": "a red circle"})
    assert (await clipped.observe(decision["id"], {"reward": 0.3}, name="open"))["reward"] == 0.3
    assert (await clipped.log("open"))[-1]["source"] == "client"
    assert (await clipped.bandit("open"))["reward"]["override"] is True


async def test_a_clip_score_needs_the_prompt_of_every_decision(clipped: Service) -> None:
    await clipped.create(body={**SHOWN, "policy": {"kind": "greedy"}})
    assert paths(await clipped.post("/v1/bandits/b/decisions", {})) == ["prompt"]
    decision = await clipped.decide(body={"prompt": "a red circle"})
    refused = await clipped.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"output": "circle", "next": True})
    assert paths(refused) == ["next"]
    assert paths(await clipped.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {})) == ["output"]
    assert (await clipped.observe(decision["id"], {"output": "circle"}))["reward"] >= 0


async def test_a_later_attempt_is_compared_with_the_prompt_of_its_episode(clipped: Service, models: Path) -> None:
    cheap = [{"name": "small", "price": 0.001}, {"name": "large", "price": 0.002}]
    await clipped.create(body={**SHOWN, "policy": {"kind": "promptwise", "cost_weight": 0.01, "forced_pulls": 0}, "arms": cheap})
    first = await clipped.decide(body={"prompt": "a red circle"})
    receipt = await clipped.observe(first["id"], {"output": {"image": posted(file())}, "next": True})
    second = receipt["next"]
    assert second is not None
    assert not second["stop"]
    again = await clipped.observe(second["id"], {"output": "a blue square"})
    text, output = embedded(models, "a red circle", "a blue square")
    assert again["reward"] == pytest.approx(max(0.0, float(text @ output)), abs=1e-5)


IMAGE = posted(file())
NO_TEXTS = [
    IMAGE,
    " \n" + IMAGE[:20] + "\n" + IMAGE[20:] + "\n",
    IMAGE.rstrip("=").replace("+", "-").replace("/", "_"),
    posted(file(kind="JPEG")),
    posted(file(kind="WEBP", lossless=True)),
    posted(file(kind="GIF")),
    f"data:image/png;base64,{IMAGE}",
    "https://example.com/cat.png",
    "s3://bucket/cat.png",
]


@pytest.mark.parametrize("text", [*NO_TEXTS, "a red circle", "circle"])
async def test_a_bandit_whose_outputs_are_pictures_refuses_text(clipped: Service, text: str) -> None:
    await clipped.create(body={**SHOWN, "output": TINY})
    await clipped.create("declared", body={**SHOWN, "output": {**TINY, "takes": "image"}, "reward": {"source": "client"}})
    for name in ("b", "declared"):
        decision = await clipped.decide(name, {"prompt": "a red circle"})
        for output in (text, {"text": text}, [{"image": IMAGE}, text]):
            refused = await clipped.put(
                f"/v1/bandits/{name}/decisions/{decision['id']}/outcome", {"output": output, **REWARDS[name]}
            )
            assert failed(refused) == (422, "invalid_request")
            assert paths(refused) == ["output.1.text" if isinstance(output, list) else "output.text"]
            assert 'post {"image": "<base64' in refused.json()["detail"]
        batch = {"outcomes": [{"decision": decision["id"], "output": text, **REWARDS[name]}]}
        items = answered(await clipped.post(f"/v1/bandits/{name}/outcomes/batch", batch))["outcomes"]
        assert [item["status"] for item in items] == [422]
        assert await clipped.offset(name) == 2
        await clipped.observe(decision["id"], {"output": {"image": IMAGE}, **REWARDS[name]}, name=name)


REWARDS: dict[str, Json] = {"b": {}, "declared": {"reward": 0.5}}


@pytest.mark.parametrize("text", NO_TEXTS)
async def test_where_both_are_taken_a_text_that_stands_for_an_image_is_refused(clipped: Service, text: str) -> None:
    await clipped.create(body=SHOWN)
    await clipped.create("known", body={"policy": {"kind": "fd-ucb"}, "arms": ARMS, "output": TINY, "seed": 7})
    jkd = {"kind": "dak-ucb", "diversity": "jkd", "output_bandwidth": 1.0}
    await clipped.create("pairs", body={"policy": jkd, "arms": ARMS, "prompt": TINY, "output": TINY, "seed": 7})
    decision = await clipped.decide(body={"prompt": "a red circle"})
    refused = (
        (await clipped.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"output": text}), "output.text"),
        (await clipped.post("/v1/bandits/b/decisions", {"prompt": text}), "prompt.text"),
        (await clipped.post("/v1/bandits/b/decisions", {"prompt": {"text": text}, "dry_run": True}), "prompt.text"),
        (await clipped.post("/v1/bandits/known/references", {"outputs": ["circle", text]}), "outputs.1.text"),
        (
            await clipped.post("/v1/bandits/pairs/references", {"pairs": [{"prompt": text, "output": "red"}]}),
            "pairs.0.prompt.text",
        ),
        (
            await clipped.post("/v1/bandits/pairs/references", {"pairs": [{"prompt": "red", "output": text}]}),
            "pairs.0.output.text",
        ),
    )
    for response, path in refused:
        assert failed(response) == (422, "invalid_request")
        assert paths(response) == [path]
        assert 'post {"image": "<base64' in response.json()["detail"]
    batch = answered(await clipped.post("/v1/bandits/b/decisions/batch", {"decisions": [{"prompt": text}, {"prompt": "red"}]}))
    assert [item.get("status") for item in batch["decisions"]] == [422, None]
    assert [await clipped.offset(name) for name in ("b", "known", "pairs")] == [3, 1, 1]


async def test_a_bandit_of_texts_takes_any_text_and_no_image(clipped: Service) -> None:
    texts = {**TINY, "takes": "text"}
    await clipped.create(body={**SHOWN, "prompt": texts, "output": texts})
    assert (await clipped.bandit())["output"]["takes"] == "text"
    for text in NO_TEXTS:
        decision = await clipped.decide(body={"prompt": text})
        await clipped.observe(decision["id"], {"output": text})
    assert paths(await clipped.post("/v1/bandits/b/decisions", {"prompt": {"image": IMAGE}})) == ["prompt.image"]


async def test_which_contents_are_meant_is_in_the_log_and_a_body_that_does_not_say_it_is_what_it_was(clipped: Service) -> None:
    silent = {**SHOWN, "output": TINY}
    await clipped.create(body=silent)
    created = (await clipped.log())[0]
    assert (created["prompt_takes"], created["output_takes"]) == ("both", "image")
    assert "takes" not in {**created["request"]["prompt"], **created["request"]["output"]}
    assert "takes" not in (await clipped.bandit())["output"]
    assert (await clipped.put("/v1/bandits/b", silent)).status_code == 200
    assert failed(await clipped.put("/v1/bandits/b", SHOWN)) == (409, "bandit_exists")
    await clipped.create("vectors", body={"policy": {"kind": "greedy"}, "arms": ARMS, "seed": 7})
    assert "output_takes" not in (await clipped.log("vectors"))[0]


async def test_a_log_from_before_the_distinction_takes_texts_that_are_texts(tmp_path: Path, models: Path) -> None:
    async with opened(models=str(models)) as service:
        await service.create(body={**SHOWN, "output": TINY})
        (created,) = await service.log()
    del created["offset"], created["prompt_takes"], created["output_takes"]
    store = f"sqlite:///{tmp_path}/bandits.db"
    storage = Settings.load(store=store).open_storage()
    await storage.start()
    await storage.create(Log("1", "b"), json.dumps(created).encode())
    await storage.close()
    async with opened(models=str(models), store=store) as service:
        decision = await service.decide(body={"prompt": "a red circle"})
        path = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
        assert paths(await service.put(path, {"output": IMAGE})) == ["output.text"]
        await service.observe(decision["id"], {"output": "a red circle"})


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("https://example.com/cat.png", "URLs are not fetched"),
        ("AAAA", "is no PNG, JPEG or WebP"),
        ("?", "is not base64"),
        (posted(file()[:-30]), "is cut off or damaged"),
        (posted(file()[:60] + b"\0" * 60 + file()[120:]), "is cut off or damaged"),
        (posted(file(kind="GIF")), "is no PNG, JPEG or WebP"),
    ],
)
async def test_a_bad_picture_is_a_422_that_names_it_and_logs_nothing(clipped: Service, image: str, reason: str) -> None:
    await clipped.create(body=SHOWN)
    decision = await clipped.decide(body={"prompt": "a red circle"})
    refused = await clipped.put(
        f"/v1/bandits/b/decisions/{decision['id']}/outcome", {"output": [{"image": posted(file())}, {"image": image}]}
    )
    assert failed(refused) == (422, "invalid_request")
    assert paths(refused) == ["output.1.image"]
    assert reason in refused.json()["detail"]
    assert await clipped.offset() == 2


async def test_limits_of_pictures_are_settings(models: Path) -> None:
    async with opened(models=str(models), max_image_pixels=100, max_image_bytes=150) as service:
        await service.create(body=SHOWN)
        small = posted(file(picture(size=(3, 3))))
        assert (await service.post("/v1/bandits/b/decisions", {"prompt": {"image": small}})).status_code == 201
        for image in (file(picture(size=(11, 10))), file(picture(size=(60, 60)))):
            assert paths(await service.post("/v1/bandits/b/decisions", {"prompt": {"image": posted(image)}})) == ["prompt.image"]


async def test_an_embedder_that_takes_no_images_says_so(service: Service) -> None:
    if not registry.available("static"):
        pytest.skip("static is not installed")
    await service.create(body={"policy": {"kind": "pak-ucb"}, "arms": ARMS, "prompt": {"embedder": "static"}})
    refused = await service.post("/v1/bandits/b/decisions", {"prompt": {"image": posted(file())}})
    assert paths(refused) == ["prompt.image"]
    assert "takes no images" in refused.json()["detail"]


async def test_the_same_pictures_posted_by_many_at_once_are_embedded_once(clipped: Service) -> None:
    await clipped.create(body=SHOWN)
    decisions = await asyncio.gather(*(clipped.decide(body={"prompt": "a red circle"}) for _ in range(8)))
    body = {"output": [{"image": posted(file(picture(red=red)))} for red in (1, 2, 3)]}
    await asyncio.gather(*(clipped.observe(decision["id"], body) for decision in decisions))
    services = clipped.client._transport.app.state.services  # type: ignore[attr-defined]
    assert services.embeddings.counts()["open-clip/tiny"].embedded == 4


async def test_a_bandit_whose_prompts_have_words_that_its_embedder_does_not_know_says_so(clipped: Service) -> None:
    await clipped.create(body=SHOWN)
    for i in range(8):
        await clipped.decide(body={"prompt": f"a red circle{'s' if i % 2 else ''}"})
    assert (await clipped.bandit())["notices"] == []
    for i in range(5):
        await clipped.decide(body={"prompt": f"a quarterly turnover forecast {i}"})
    (notice,) = (await clipped.bandit())["notices"]
    assert "texts that open-clip/tiny embedded" in notice
    assert "GET /v1/embedders" in notice


# -- probabilities -------------------------------------------------------------------------------------------------------------


async def test_classes_by_prompts_are_the_softmax_of_a_hundred_cosines(clipped: Service, models: Path) -> None:
    classes = ["a red circle", "a blue square", "green"]
    body = {"policy": {"kind": "is-ucb"}, "arms": ARMS, "output": {**TINY, "classes": classes}, "seed": 7}
    await clipped.create(body=body)
    assert (await clipped.bandit())["output"]["dim"] == 3
    decision = await clipped.decide()
    await clipped.observe(decision["id"], {"output": [{"image": posted(file())}, "a blue circle"]})
    logits = 100 * embedded(models, file(), "a blue circle") @ embedded(models, *classes).T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert vectors((await clipped.log())[-1]["output"]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    another = await clipped.decide()
    vector = await clipped.put(f"/v1/bandits/b/decisions/{another['id']}/outcome", {"output": {"vector": [0.1] * 12}})
    assert paths(vector) == ["output.vector"]
    assert paths(await clipped.put("/v1/bandits/c", {**body, "output": TINY})) == ["output.classes"]
    assert paths(await clipped.put("/v1/bandits/c", {**body, "output": {**TINY, "classes": ["a", "a"]}})) == ["output.classes"]


async def test_imagenet_gives_classes_or_features_as_the_policy_learns(service: Service) -> None:
    if not registry.available("imagenet"):
        pytest.skip("imagenet is not installed")
    for kind, identity, dim in (("is-ucb", "imagenet/classes", 1_000), ("mixture-ucb", "imagenet", 1_280)):
        objective = {} if kind == "is-ucb" else {"bandwidth": 1.0}
        created = await service.put(
            f"/v1/bandits/{kind}",
            {"policy": {"kind": kind, **objective}, "arms": ARMS, "output": {"embedder": "imagenet"}, "seed": 7},
        )
        assert created.status_code == 201, created.text
        assert created.json()["output"]["embedder"] == identity
        assert created.json()["output"]["dim"] == dim
        decision = await service.decide(kind)
        await service.observe(decision["id"], {"output": {"image": posted(file())}}, name=kind)
        rows = vectors((await service.log(kind))[-1]["output"])
        assert rows.shape == (1, dim)
        if kind == "is-ucb":
            assert float(rows.astype(float).sum()) == pytest.approx(1.0, abs=1e-5)
            another = await service.decide(kind)
            text = await service.put(f"/v1/bandits/{kind}/decisions/{another['id']}/outcome", {"output": "a cat"})
            assert paths(text) == ["output.text"]


# -- texts are scored without being kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "outcome", "expected"),
    [
        ({"source": "json-valid"}, {"output": '{"a": 1}'}, 1.0),
        ({"source": "json-valid"}, {"output": ['{"a": 1}', "{"]}, 0.5),
        ({"source": "regex", "pattern": "^yes"}, {"output": "yes, it is"}, 1.0),
        ({"source": "length-penalty", "target": 4}, {"output": "12345678"}, 0.5),
        ({"source": "exact-match", "expected": "Paris"}, {"output": " Paris "}, 1.0),
        ({"source": "exact-match"}, {"output": "Paris", "reference": "Rome"}, 0.0),
    ],
)
async def test_a_text_is_scored_and_not_kept(service: Service, reward: Json, outcome: Json, expected: float) -> None:
    await service.create(body={**TEXTS, "reward": reward})
    decision = await service.decide()
    assert (await service.observe(decision["id"], outcome))["reward"] == expected
    logged = (await service.log())[-1]
    assert logged["source"] == reward["source"]
    assert logged["output"]["rows"] == 0
    assert (await service.arm("small"))["mean_reward"] == expected


async def test_what_a_scorer_cannot_judge_is_a_422_and_logs_nothing(service: Service) -> None:
    await service.create(body={**TEXTS, "reward": {"source": "exact-match"}})
    decision = await service.decide()
    path = f"/v1/bandits/b/decisions/{decision['id']}/outcome"
    for body, field in (
        ({"output": "Paris"}, "reference"),
        ({"output": {"image": posted(file())}, "reference": "Paris"}, "output"),
        ({"output": {"vector": [1.0]}, "reference": "Paris"}, "output"),
        ({"reward": 0.5}, "reward"),
        ({}, "output"),
        ({"output": {"image": "http://x"}}, "output.image"),
    ):
        assert paths(await service.put(path, body)) == [field]
    assert await service.offset() == 2


# -- references by content -----------------------------------------------------------------------------------------------------


async def test_reference_pictures_are_embedded_like_outputs(clipped: Service, models: Path) -> None:
    await clipped.create(body={"policy": {"kind": "fd-ucb"}, "arms": ARMS, "output": TINY, "seed": 7})
    contents = [file(picture(red=red)) for red in (5, 90, 180)]
    sent = {"outputs": [*({"image": posted(content)} for content in contents), "a blue circle", {"vector": [0.5] * 12}]}
    assert answered(await clipped.post("/v1/bandits/b/references", sent))["count"] == 5
    rows = vectors((await clipped.log())[-1]["outputs"])
    assert rows[:4] == pytest.approx(embedded(models, *contents, "a blue circle"), abs=1e-5)
    assert rows[4].tolist() == [0.5] * 12
    bad = await clipped.post("/v1/bandits/b/references", {"outputs": ["circle", {"image": "AAAA"}]})
    assert paths(bad) == ["outputs.1.image"]


async def test_pairs_of_texts_and_pictures_are_embedded(clipped: Service, models: Path) -> None:
    policy = {"kind": "dak-ucb", "diversity": "jkd", "output_bandwidth": 1.0}
    await clipped.create(body={"policy": policy, "arms": ARMS, "prompt": TINY, "output": TINY, "seed": 7})
    pairs = [
        {"prompt": "a red circle", "output": {"image": posted(file())}},
        {"prompt": {"image": posted(file())}, "output": "red"},
    ]
    receipt = await clipped.post("/v1/bandits/b/references", {"pairs": pairs})
    assert receipt.status_code == 201, receipt.text
    logged = (await clipped.log())[-1]
    assert vectors(logged["prompts"]) == pytest.approx(embedded(models, "a red circle", file()), abs=1e-5)
    assert vectors(logged["outputs"]) == pytest.approx(embedded(models, file(), "red"), abs=1e-5)
