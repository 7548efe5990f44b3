"""The route class of adapters: strict JSON in, and failures in the form that the other service's clients read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from service.api.error_mapping import to_problem
from service.api.json_bodies import StrictJSONRoute
from service.api.problems import Problem
from service.api.requests import ID
from service.api.validation import validation_problem


class ForeignBody(BaseModel):
    """A body of another service's client. It has more fields than are read here."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class AdapterRoute(StrictJSONRoute):
    """A route whose failures are answered by `failure`."""

    @staticmethod
    def failure(problem: Problem) -> Response:
        """The answer that the clients of the other service expect for a problem."""
        raise NotImplementedError

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                problem = _problem(error)
                request.scope["nextarm.problem"] = problem.code  # counted by the middleware
                return self.failure(problem)

        return answered


def _problem(error: Exception) -> Problem:
    if isinstance(error, HTTPException) and isinstance(error.__cause__, Problem):
        return error.__cause__
    if isinstance(error, RequestValidationError | ValidationError):
        return validation_problem(error)
    return to_problem(error)


def decision_id(foreign: str) -> str:
    """The id of the decision for an id of another service: the same where it may be one, else a digest of it."""
    return foreign if re.fullmatch(ID, foreign) else f"sha256-{hashlib.sha256(foreign.encode()).hexdigest()[:48]}"
