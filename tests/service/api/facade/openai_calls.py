"""Calls of OpenAI's own client, in a process of its own.

python tests/service/api/facade/openai_calls.py URL       prints a JSON object: what each scenario saw
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

QUESTION = "What is the capital of France?"
SAID: Any = [{"role": "user", "content": QUESTION}]


def seen(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call returned, or how it failed."""
    try:
        return {"value": call()}
    except openai.APIStatusError as error:
        about = {"kind": type(error).__name__, "status": error.status_code, "code": error.code, "type": error.type}
        return {**about, "message": error.message, "param": error.param, "headers": dict(error.response.headers)}
    except openai.APIError as error:
        return {"kind": type(error).__name__, "message": error.message, "code": error.code}


def sync(client: OpenAI) -> dict[str, Any]:
    def chat(bandit: str, **more: Any) -> Any:
        return client.chat.completions.create(model=f"bandit/{bandit}", messages=SAID, **more)

    def raw() -> Any:
        response = client.chat.completions.with_raw_response.create(model="bandit/router", messages=SAID)
        answer = response.parse()
        return {
            "headers": dict(response.headers),
            "text": answer.choices[0].message.content,
            "model": answer.model,
            "request_id": answer._request_id,
        }

    def stream(bandit: str, **more: Any) -> Any:
        parts, usage = [], None
        events = chat(bandit, stream=True, **more)
        for part in events:
            parts += [choice.delta.content or "" for choice in part.choices]
            usage = part.usage or usage
        return {
            "text": "".join(parts),
            "usage": usage.total_tokens if usage else None,
            "headers": dict(events.response.headers),
            "model": part.model,
        }

    def responses() -> Any:
        answer = client.responses.create(model="bandit/router", input=QUESTION)
        return {"text": answer.output_text, "model": answer.model}

    def responses_stream(bandit: str) -> Any:
        kinds: list[str] = []
        last: Any = None
        for part in client.responses.create(model=f"bandit/{bandit}", input=QUESTION, stream=True):
            kinds.append(part.type)
            last = part
        return {"kinds": kinds, "text": last.response.output_text, "model": last.response.model}

    def images() -> Any:
        return client.images.generate(model="bandit/router", prompt="a cat").data[0].url  # type: ignore[index, unused-ignore]

    def session() -> Any:
        calls = [
            client.chat.completions.with_raw_response.create(
                model="bandit/sticky", messages=SAID, extra_headers={"x-session-id": "chat-1"}
            )
            for _ in range(5)
        ]
        return sorted({call.headers["x-nextarm-arm"] for call in calls})

    return {
        "raw": seen(raw),
        "stream": seen(lambda: stream("router")),
        "stream with usage": seen(lambda: stream("router", stream_options={"include_usage": True})),
        "fallback": seen(lambda: [stream("shaky")["text"] for _ in range(3)]),
        "cut": seen(lambda: stream("cut")),
        "down": seen(lambda: chat("down").id),
        "limited": seen(lambda: chat("limited").id),
        "picky": seen(lambda: chat("picky").id),
        "missing": seen(lambda: chat("missing").id),
        "wrong": seen(lambda: client.chat.completions.create(model="gpt-5", messages=SAID).id),
        "responses": seen(responses),
        "responses stream": seen(lambda: responses_stream("router")),
        "responses cut": seen(lambda: responses_stream("cut")),
        "images": seen(images),
        "embeddings": seen(lambda: client.embeddings.create(model="bandit/router", input=QUESTION).data[0].embedding),
        "models": seen(lambda: [model.id for model in client.models.list()]),
        "model": seen(lambda: client.models.retrieve("bandit/router").id),
        "session": seen(session),
        "key": seen(lambda: client.with_options(api_key="wrong").models.list().data),
        "reader": seen(lambda: client.with_options(api_key="eye").chat.completions.create(model="bandit/router", messages=SAID)),
    }


async def asynchronous(url: str) -> dict[str, Any]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="way") as client:

        async def chat() -> Any:
            return (await client.chat.completions.create(model="bandit/router", messages=SAID)).choices[0].message.content

        async def stream() -> str:
            parts = await client.chat.completions.create(model="bandit/router", messages=SAID, stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in parts])

        return {"together": await asyncio.gather(*(call() for _ in range(5) for call in (chat, stream)))}


def main() -> None:
    url = sys.argv[1]
    with OpenAI(base_url=f"{url}/v1", api_key="way") as client:
        found = sync(client)
    print(json.dumps({**found, **asyncio.run(asynchronous(url))}))


if __name__ == "__main__":
    main()
