"""What a driver sends: a few kinds of request streams, the same ones for wrk and for the driver of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bodies", "outcomes", "outcome batches", "texts"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stream of requests.

    bodies           the lines of a file in turn, by `method` to `path`; a line may be empty (no body)
    outcomes         PUT `path`/PREFIXn/outcome for n = 1 ... supply, each once, then the stream ends
    outcome batches  POST `path` with `size` outcomes for PREFIXn, until fewer are left
    texts            POST `path` with prompts as text, of which `different` differ; PREFIX tells them from other plans'
    """

    kind: Kind
    path: str
    method: str = "POST"
    file: str = ""
    prefix: str = ""
    supply: int = 0
    size: int = 1
    different: int = 1


def reward(n: int) -> str:
    """Of the n-th decision: three digits that jump about."""
    return f"0.{n * 379 % 1000:03d}"


def outcome_item(prefix: str, n: int) -> str:
    """One outcome of a batch."""
    return f'{{"decision":"{prefix}{n}","reward":{reward(n)}}}'


def text_body(prefix: str, n: int) -> str:
    """A decision about a short text."""
    return json.dumps({"prompt": f"Question {prefix}{n}: which of these models should answer it?"}, separators=(",", ":"))


def request(method: str, path: str, body: str = "") -> bytes:
    """As it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if not body:
        return f"{head}\r\n".encode()
    content = body.encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def stream(plan: Plan) -> Iterator[bytes]:
    """The requests, ready to send."""
    if plan.kind == "bodies":
        with open(plan.file) as lines:
            ready = [request(plan.method, plan.path, line.rstrip("\n")) for line in lines]
        while True:
            yield from ready
    elif plan.kind == "outcomes":
        for n in range(1, plan.supply + 1):
            yield request("PUT", f"{plan.path}/{plan.prefix}{n}/outcome", f'{{"reward":{reward(n)}}}')
    elif plan.kind == "outcome batches":
        for first in range(1, plan.supply - plan.size + 2, plan.size):
            items = ",".join(outcome_item(plan.prefix, n) for n in range(first, first + plan.size))
            yield request("POST", plan.path, f'{{"outcomes":[{items}]}}')
    else:
        n = 0
        while True:
            n += 1
            yield request("POST", plan.path, text_body(plan.prefix, n % plan.different))
