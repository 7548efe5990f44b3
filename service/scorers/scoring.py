"""Scoring off the event loop: builds a bandit's scorer once, scores every sample of an outcome, and checks for finite rewards.

Scorers of other packages have threads of their own: one that hangs blocks no other request, and is abandoned after a while. (A
thread cannot be stopped: a scorer that hangs for ever keeps its thread, and with all of them gone answers 503.)
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.scorers import registry
from service.scorers.base import CannotScore, InvalidParameter, Sample, Scorer, ScorerError, ScorerSpec, ScoringFailed

log = logging.getLogger(__name__)

KEPT = 256
"""Built scorers; the least recently used one is built again."""
LARGEST = 1e12
"""Of a reward, as of a posted one."""


class Scoring:
    """Builds scorers and runs them in threads. Belongs to one event loop.

    timeout_s: seconds that the samples of one outcome may take.
    threads:   of the service's scorers, and again of the plugged ones.
    """

    def __init__(self, *, timeout_s: float = 30.0, threads: int = 4) -> None:
        self._timeout_s = timeout_s
        self._threads = {plugged: ThreadPoolExecutor(threads, thread_name_prefix="score") for plugged in (False, True)}
        self._built: OrderedDict[str, Scorer] = OrderedDict()

    async def reward(self, name: str, parameters: Mapping[str, Any], samples: Sequence[Sample]) -> float:
        """The mean over the samples of one outcome. Raises any `ScorerError`."""
        spec = registry.spec(name)
        run = asyncio.get_running_loop().run_in_executor(self._threads[spec.plugged], self._mean, spec, parameters, samples)
        try:
            return await asyncio.wait_for(run, self._timeout_s)
        except TimeoutError:
            raise ScoringFailed(f"the scorer {name!r} took longer than {self._timeout_s:g} s") from None

    def close(self) -> None:
        """Nothing more is begun."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _mean(self, spec: ScorerSpec, parameters: Mapping[str, Any], samples: Sequence[Sample]) -> float:
        scorer = self._scorer(spec, parameters)
        return math.fsum(score(spec, scorer, sample) for sample in samples) / len(samples)

    def _scorer(self, spec: ScorerSpec, parameters: Mapping[str, Any]) -> Scorer:
        key = json.dumps([spec.name, parameters], sort_keys=True)
        scorer = self._built.pop(key, None) or build(spec, parameters)
        self._built[key] = scorer  # two threads may build it at once: the later one stays
        while len(self._built) > KEPT:
            self._built.popitem(last=False)
        return scorer


def build(spec: ScorerSpec, parameters: Mapping[str, Any]) -> Scorer:
    """The scorer with these parameters, or a `ScorerError`. Blocks."""
    spec.check_parameters(list(parameters))
    try:
        return spec.build(parameters)
    except ScorerError:
        raise
    except ValueError as error:
        raise InvalidParameter("options", str(error)) from error
    except Exception as error:
        raise ScoringFailed(f"the scorer {spec.name!r} could not be built: {_where(error)}") from error


def score(spec: ScorerSpec, scorer: Scorer, sample: Sample) -> float:
    """The reward of one sample: a finite number, or a `ScorerError`. No message of a scorer's bug goes further: it may repeat the
    output.
    """
    failure: ScorerError
    try:
        number = scorer(sample)
        if isinstance(number, int | float) and math.isfinite(number) and abs(number) <= LARGEST:
            return float(number)
        failure = ScoringFailed(f"the scorer {spec.name!r} gave no finite number")
    except ScorerError as error:
        failure = error
    except ValueError as error:
        failure = CannotScore("output", f"cannot be judged by {spec.name!r}: {error}")
    except Exception as error:
        log.error("a scorer failed", extra={"scorer": spec.name, "reason": _where(error)})
        failure = ScoringFailed(f"the scorer {spec.name!r} failed: {_where(error)}")
    raise failure


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
