"""Pictures of the dashboard for its page of docs: a service in memory with nine days of made-up traffic, seen in a browser.

    python -m tools.screenshots [--folder docs/pictures] [--hold]

The days pass in a minute, since the service's clock is ours. `--hold` goes on serving until it is interrupted.
"""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import uvicorn
from PIL import Image
from playwright.sync_api import Page

from service.api.app import running
from service.settings import Settings
from tools import browser
from tools.processes import free_port

Json = dict[str, Any]

DAYS = 9
PER_HOUR = 8
"""Decisions of a bandit, on average."""
SEED = 7
CHAT = [
    {"name": "openai/gpt-5-mini", "price": 0.0004},
    {"name": "anthropic/claude-haiku", "price": 0.0009},
    {"name": "local/llama-70b", "price": 0.0001},
    {"name": "mistral/medium", "price": 0.0006},
]
BANDITS: dict[str, Json] = {
    "chat-router": {
        "policy": {"kind": "pak-ucb", "random_features": 64, "exploration": 0.25, "exploration_floor": 0.3, "drift": "detect"},
        "arms": CHAT,
        "prompt": {"embedder": "vector", "dim": 4},
        "objective": {"reward": 1.0, "cost": -100.0},
        "reward": {"timeout_s": 7200.0},
    },
    "summaries": {"arms": CHAT[:3], "reward": {"timeout_s": 7200.0}},
    "support-triage": {
        "policy": {"kind": "thompson", "exploration_floor": 0.05},
        "arms": CHAT,
        "prompt": {"embedder": "vector", "dim": 4},
        "reward": {"timeout_s": 1800.0},
    },
    "thumbnails": {
        "policy": {"kind": "mixture-ucb", "bandwidth": 2.0},
        "arms": [{"name": name, "price": price} for name, price in (("sdxl", 0.002), ("flux", 0.004), ("kolors", 0.001))],
        "output": {"embedder": "vector", "dim": 3},
    },
}
SHADOWS = {"chat-router": {"cheaper": {"kind": "lin-ucb"}, "bolder": {"kind": "thompson"}}}
BEGINS = {"thumbnails": 5.5}
"""Day on which a bandit is created; others on the first."""
MISSING = {"support-triage": 0.22}
"""Share of the decisions whose outcome never comes; of others .02."""

Outcome = Callable[[random.Random, str, list[float], float], Json]


def _chat(chance: random.Random, arm: str, vector: list[float], day: float) -> Json:
    """One arm is best for each kind of prompt; from the fifth day on, Llama has been trained again."""
    skill = {
        "openai/gpt-5-mini": 0.55 + 0.16 * vector[0],
        "anthropic/claude-haiku": 0.62 - 0.12 * vector[0],
        "local/llama-70b": 0.38 + 0.05 * vector[1] + 0.26 / (1 + math.exp(-6 * (day - 5))),
        "mistral/medium": 0.5 + 0.06 * vector[2],
    }
    return {"reward": min(1.0, max(0.0, chance.gauss(skill[arm], 0.16)))}


def _picture(chance: random.Random, arm: str, vector: list[float], day: float) -> Json:
    """A sample around the center of its arm."""
    center = {"sdxl": (1.5, 0.0, 0.0), "flux": (0.0, 1.5, 0.0), "kolors": (0.2, 0.2, 0.3)}[arm]
    return {"output": {"vector": [chance.gauss(mean, 0.8) for mean in center]}}


class Days:
    """The clock of the service: it stands where it was put, and runs from the end of the story on."""

    def __init__(self) -> None:
        self.begin = datetime.now(UTC) - timedelta(days=DAYS)
        self.now: datetime | None = self.begin

    def __call__(self) -> datetime:
        return self.now or datetime.now(UTC)


class Story:
    """What happens to the bandits. client: of the service whose clock is `days`."""

    def __init__(self, client: httpx.AsyncClient, days: Days) -> None:
        self._client = client
        self._days = days
        self._chance = random.Random(SEED)

    async def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """The answer to a request; it must be none that refuses."""
        answer = await self._client.request(method, path, json=body)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.text}")
        found: Json = answer.json()
        return found

    async def happen(self) -> None:
        """Create the bandits, let the days pass over them, and evaluate other policies."""
        turns, created = 24 * DAYS * PER_HOUR, set[str]()
        for turn in range(turns):
            day = DAYS * turn / turns
            busy = 1.0 + 0.6 * math.sin(2 * math.pi * (day - 0.3))
            self._days.now = self._days.begin + timedelta(days=day)
            if turn == turns // 12:
                await self._add_shadows()
            for name in [name for name in BANDITS if day >= BEGINS.get(name, 0.0)]:
                if name not in created:
                    await self.ask("PUT", f"/v1/bandits/{name}", BANDITS[name] | {"seed": SEED})
                    created.add(name)
                if self._chance.random() * 1.6 < busy and (name != "thumbnails" or turn % 4 == 0):
                    await self._decide(name, turn, day)
        self._days.now = None
        wanted = [*({"shadow": name} for name in SHADOWS["chat-router"]), {"kind": "greedy"}, {"kind": "epsilon-greedy"}]
        await self.ask("POST", "/v1/bandits/chat-router/evaluations", {"id": "this-week", "policies": wanted})
        while (await self.ask("GET", "/v1/bandits/chat-router/evaluations/this-week"))["state"] != "done":  # noqa: ASYNC110 - over HTTP there is no event
            await asyncio.sleep(0.2)

    async def _add_shadows(self) -> None:
        for name, shadows in SHADOWS.items():
            for shadow, policy in shadows.items():
                await self.ask("PUT", f"/v1/bandits/{name}/shadows/{shadow}", {"policy": policy, "from": "start"})

    async def _decide(self, name: str, turn: int, day: float) -> None:
        """One decision, and mostly its outcome."""
        chance = self._chance
        vector = [chance.gauss(0, 1) for _ in range(4)]
        body: Json = {"id": f"{name[:4]}-{turn:05}", "metadata": {"team": chance.choice(["search", "mail", "docs"])}}
        if "prompt" in BANDITS[name]:
            body |= {"prompt": {"vector": vector}, "session": f"s-{turn // 3:04}"}
        decision = await self.ask("POST", f"/v1/bandits/{name}/decisions", body)
        if chance.random() < MISSING.get(name, 0.02):
            return
        make: Outcome = _picture if name == "thumbnails" else _chat
        outcome = make(chance, decision["arm"], vector, day)
        if name == "support-triage" and decision["arm"] == "mistral/medium" and chance.random() < 0.3:
            outcome = {"error": "upstream timed out after 30 s"}
        await self.ask("PUT", f"/v1/bandits/{name}/decisions/{decision['id']}/outcome", outcome)


VIEWS = {
    "bandits": "#/bandits",
    "bandit": "#/bandits/chat-router",
    "decision": "#/bandits/chat-router",
    "what-if": "#/bandits/chat-router/what-if",
    "operations": "#/operations",
}
MODES: dict[str, Json] = {
    "light": {"viewport": {"width": 1240, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1240, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}

OVERVIEW = 866
"""Height of the picture in the README, pixels: down to the last arm."""


def take(url: str, folder: Path) -> None:
    """Every view in every mode, as `VIEW-MODE.png`, and the upper part of a bandit as `overview.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser.running() as chromium:
        for mode, context in MODES.items():
            page = chromium.new_context(reduced_motion="reduce", **context).new_page()
            for view, place in VIEWS.items():
                page.goto(f"{url}/{place}")
                page.locator("main h1").wait_for()
                page.wait_for_load_state("load")
                _settle(page, view)
                picture = shrink(page.screenshot(full_page=view != "decision"))
                picture.save(folder / f"{view}-{mode}.png", optimize=True)
                if (view, mode) == ("bandit", "light"):
                    picture.crop((0, 0, picture.width, OVERVIEW)).save(folder / "overview.png", optimize=True)
                page.goto("about:blank")


def shrink(picture: bytes) -> Image.Image:
    """With the 256 colors that it has most of: a third of the bytes, and areas keep their color to the bit."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    counted: Any = image.getcolors(image.width * image.height)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, color in sorted(counted, reverse=True)[:256] for part in color])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _settle(page: Page, view: str) -> None:
    """Wait for the last part of a view, and open what is to be seen."""
    last = {
        "bandits": "tbody tr:nth-child(4):has(polygon) .status",
        "bandit": ".checks",
        "decision": "button.id",
        "what-if": ".forest",
        "operations": ".figure:has-text('/s')",
    }
    page.locator(last[view]).first.wait_for()
    if view in ("bandit", "decision"):
        page.locator(".plot canvas").nth(1).wait_for()
        page.locator(".decisions").wait_for()
    if view == "decision":
        page.locator("button.id").nth(3).click()
        page.locator(".drawer .terms").wait_for()


async def run(folder: Path, hold: bool) -> None:
    """Serve, live through the days, and take the pictures."""
    days = Days()
    port = free_port()
    async with running(Settings.load(store="memory://", sweep_s=0.5), clock=days) as app:
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await Story(client, days).happen()
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(take, url, folder)
        if hold:
            click.echo(f"{url} until it is interrupted")
            await serving
        server.should_exit = True
        await serving


@click.command(help=__doc__)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("docs/pictures"), show_default=True)
@click.option("--hold", is_flag=True, help="Go on serving.")
def main(folder: Path, hold: bool) -> None:
    """The command."""
    asyncio.run(run(folder, hold))


if __name__ == "__main__":
    main()
