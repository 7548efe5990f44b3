"""What a driver sends: a few kinds of request streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bodies", "rounds", "outcomes", "outcome batches", "texts"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stream of requests.

    bodies           the lines of a file in turn, by `method` to `path`; a line may be empty (no body)
    rounds           the outcome of a decision that was answered where there is one, else POST the next line of a file to `path`
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


def request(method: str, path: str, body: str = "") -> bytes:
    """As it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if not body:
        return f"{head}\r\n".encode()
    content = body.encode()
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
