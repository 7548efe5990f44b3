"""Python client of nextarm: ask which generative model to query, and post back what came of it.

client = nextarm.Client("http://127.0.0.1:8000")
decision = client.decide("router", prompt=question)
client.observe("router", decision.id, reward=0.9)
"""

from typing import TYPE_CHECKING, Any

from nextarm._calls import float32
from nextarm._reports import Stats
from nextarm._version import __version__
from nextarm.client import Client, DecisionScope
from nextarm.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    GoneError,
    InvalidRequestError,
    NextarmError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    UnexpectedAnswerError,
)
from nextarm.models import Bandit, Decision, Problem, Receipt
from nextarm.raw import RawResponse

if TYPE_CHECKING:
    from nextarm.async_client import AsyncClient, AsyncDecisionScope

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncDecisionScope",
    "AuthenticationError",
    "BadRequestError",
    "Bandit",
    "Client",
    "ConflictError",
    "Decision",
    "DecisionScope",
    "GoneError",
    "InvalidRequestError",
    "NextarmError",
    "NotFoundError",
    "PermissionDeniedError",
    "Problem",
    "RateLimitError",
    "RawResponse",
    "Receipt",
    "RequestTimeoutError",
    "ServerError",
    "Stats",
    "UnexpectedAnswerError",
    "__version__",
    "float32",
]


def __getattr__(name: str) -> Any:
    """Import the awaiting client when it is named: code that blocks does not pay for asyncio."""
    if name in ("AsyncClient", "AsyncDecisionScope"):
        from nextarm import async_client

        return getattr(async_client, name)
    raise AttributeError(f"module 'nextarm' has no attribute {name!r}")
