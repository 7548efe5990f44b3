"""Calls of LiteLLM's Router with the callback, run by the Python of an environment that has LiteLLM.

python tests/integrations/sdk_calls.py BANDIT NEXTARM_URL UPSTREAM_URL       prints a JSON object: what each scenario saw
python tests/integrations/sdk_calls.py BANDIT NEXTARM_URL UPSTREAM_URL --cpu 300
                                                                      prints CPU per call with and without the callback
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import httpx2
import litellm
from litellm.integrations.custom_logger import CustomLogger
from nextarm.litellm import KEY, NextarmCallback

SAID = [{"role": "user", "content": "good morning"}]
warnings: list[str] = []


class Kept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warnings.append(record.getMessage())


def router(upstream: str) -> Any:
    def deployment(group: str, model: str, **about: Any) -> dict[str, Any]:
        params = {"model": f"openai/{model}", "api_base": f"{upstream}/v1", "api_key": "x"}
        return {"model_name": group, "litellm_params": params, "model_info": about}

    models = [
        deployment("smart", "gpt-4o-mini", id="small"),
        deployment("smart", "gpt-4o", id="1", nextarm_arm="large"),
        deployment("shaky", "broken-1", id="b1"),
        deployment("shaky", "broken-2", id="b2"),
        deployment("shaky", "gpt-4o-mini", id="works"),
        deployment("picky", "refusing", id="refusing"),
    ]
    return litellm.Router(model_list=models, num_retries=2, allowed_fails=1000, retry_after=0)


class Idle(CustomLogger):  # type: ignore[misc, unused-ignore]
    """A callback that has the hooks and does nothing: what LiteLLM does for any callback is not nextarm's."""

    async def async_filter_deployments(
        self, model: str, healthy_deployments: list[Any], messages: Any, request_kwargs: Any = None, parent_otel_span: Any = None
    ) -> list[Any]:
        return healthy_deployments[:1]

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        pass


async def scenarios(of: Any, route: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def seen(name: str, call: Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]) -> None:
        metadata: dict[str, Any] = {}
        try:
            await call(metadata)
        except Exception as error:
            metadata["raised"] = type(error).__name__
        found[name] = {"attempts": list((metadata.get(KEY) or {}).values()), "raised": metadata.get("raised")}

    async def stream(metadata: dict[str, Any], **more: Any) -> None:
        async for _ in await route.acompletion("smart", messages=SAID, stream=True, metadata=metadata, **more):
            pass

    await seen("chat", lambda metadata: route.acompletion("smart", messages=SAID, metadata=metadata))
    await seen("stream", stream)
    await seen("stream with usage", lambda metadata: stream(metadata, stream_options={"include_usage": True}))
    await seen("embedding", lambda metadata: route.aembedding("smart", input=["good morning"], metadata=metadata))
    await seen("image", lambda metadata: route.aimage_generation("a cat", model="smart", metadata=metadata))
    await seen("retries", lambda metadata: route.acompletion("shaky", messages=SAID, metadata=metadata))
    await seen("refused", lambda metadata: route.acompletion("picky", messages=SAID, metadata=metadata))

    async def together(metadata: dict[str, Any]) -> None:
        await asyncio.gather(*(route.acompletion("smart", messages=SAID, metadata=metadata) for _ in range(5)))

    await seen("together", together)
    await settled(of)
    return found


async def settled(of: Any) -> None:
    """Until LiteLLM's logging worker has handed over its events, and they are posted."""
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    await GLOBAL_LOGGING_WORKER.flush()
    await of.flush()


async def second_loop(of: Any, route: Any) -> list[Any]:
    metadata: dict[str, Any] = {}
    await route.acompletion("smart", messages=SAID, metadata=metadata)
    await settled(of)
    return list(metadata[KEY].values())


async def away(route: Any) -> dict[str, Any]:
    """Nothing listens where the service should be."""
    litellm.callbacks = [NextarmCallback(bandit="router", url="http://127.0.0.1:9")]
    began = time.monotonic()
    answers = [await route.acompletion("smart", messages=SAID) for _ in range(10)]
    return {"answers": len(answers), "seconds": time.monotonic() - began}


async def cpu(of: Any, route: Any, calls: int) -> dict[str, float]:
    """Milliseconds of CPU of a call: with a callback that does nothing, with nextarm, and the difference.

    Ten at a time; the two take turns. httpx2: one bare request to the service, for the scale of the machine.
    """
    times: dict[str, list[float]] = {"idle": [], "nextarm": []}
    for block in range(12):
        for name, callbacks in (("idle", [Idle()]), ("nextarm", [of])):
            litellm.callbacks = callbacks
            for kind in ("success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback"):
                setattr(litellm, kind, [])
            began = time.process_time()
            for _ in range(calls // 100):
                await asyncio.gather(*(route.acompletion("smart", messages=SAID, mock_response="Bonjour") for _ in range(10)))
            await settled(of)
            if block >= 2:
                times[name].append((time.process_time() - began) / (calls // 100 * 10) * 1e3)
    idle, both = (sorted(times[name])[len(times[name]) // 2] for name in times)
    async with httpx2.AsyncClient() as bare:
        began = time.process_time()
        for _ in range(200):
            await bare.post(f"{of._url}/v1/bandits/router/decisions", json={"dry_run": True})
        scale = (time.process_time() - began) / 200 * 1e3
    return {"idle": idle, "nextarm": both, "difference": both - idle, "httpx2": scale}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bandit")
    parser.add_argument("url")
    parser.add_argument("upstream")
    parser.add_argument("--cpu", type=int, default=0)
    given = parser.parse_args()
    logging.getLogger("nextarm.litellm").addHandler(Kept())
    of = NextarmCallback(bandit=given.bandit, url=given.url, reward=lambda response, kwargs: 1.0)
    litellm.callbacks = [of]
    route = router(given.upstream)
    if given.cpu:
        print(json.dumps(asyncio.run(cpu(of, route, given.cpu))))
        return
    found = asyncio.run(scenarios(of, route))
    found["second loop"] = {"attempts": asyncio.run(second_loop(of, route)), "raised": None}
    route.completion("smart", messages=SAID)
    found["warnings"] = list(warnings)
    found["away"] = asyncio.run(away(route))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
