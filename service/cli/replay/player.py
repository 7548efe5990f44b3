"""Plays one policy over a table through the HTTP API: post a prompt, look up what the chosen arm earned, post that.

PUT bandit --> for each round: POST decision --> table[prompt, arm] --> PUT outcome --> DELETE bandit
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click
import httpx
import numpy as np

from service.cli.replay.errors import ServerError
from service.cli.replay.tables import Table

STOP = -1
"""The pick of a round in which the policy found no arm worth asking."""

_TRIES = 6
_BUSY = frozenset({429, 503})  # the API says that these may be tried again; ids make every call here idempotent


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A policy that takes part. label: its name in the report.  policy: the `policy` object of the API, `kind` included."""

    label: str
    policy: Mapping[str, Any]
    contextual: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """One contender over one order of the prompts.

    order: (R,) row of the table played in round r.  picks: (R,) index of the chosen arm, or `STOP`.  seconds: wall time.
    """

    label: str
    seed: int
    order: np.ndarray
    picks: np.ndarray
    seconds: float = field(default=0.0, compare=False)


class Api:
    """A keep-alive connection to one service, whose failures are one clear line each."""

    def __init__(self, url: str, *, client: httpx.Client) -> None:
        self.url = url.rstrip("/")
        self.client = client

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of one request; `ServerError` for anything but a 2xx. Busy servers and torn connections are retried."""
        wrong: list[tuple[str, str]] = []
        for attempt in range(_TRIES):
            pause = 0.1 * 2**attempt
            try:
                response = self.client.request(method, self.url + path, json=body)
            except httpx.TransportError as error:
                failure = f"cannot reach {self.url}: {error or type(error).__name__}"
                if isinstance(error, httpx.ConnectError):
                    raise ServerError(failure) from None
            else:
                if response.is_success:
                    return _json(response) if response.content else None
                failure, wrong = _problem(method, path, response), _wrong_fields(response)
                if response.status_code not in _BUSY:
                    break
                pause = max(pause, _seconds(response.headers.get("retry-after", "")))
            if attempt + 1 < _TRIES:
                time.sleep(min(pause, 30.0))
        raise ServerError(failure, wrong=wrong)


@contextmanager
def connect(url: str, *, private: bool, api_key: str = "") -> Iterator[Api]:
    """Open a connection. private: a server of our own on loopback, for which proxies of the environment do not hold."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(timeout=httpx.Timeout(120.0, connect=10.0), headers=headers, trust_env=not private) as client:
        yield Api(url, client=client)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise ServerError(f"{response.url} does not answer JSON; is it a nextarm server?") from None


def _problem(method: str, path: str, response: httpx.Response) -> str:
    """One line from a problem+json body."""
    try:
        problem = response.json()
        errors = "; ".join(f"{error['path']}: {error['message']}" for error in problem.get("errors") or ())
        said = " ".join(
            filter(None, (problem.get("code"), problem.get("detail") or problem.get("title"), errors and f"({errors})"))
        )
    except (ValueError, AttributeError, KeyError, TypeError):
        said = response.text[:200] or response.reason_phrase
    return f"{method} {path} answered {response.status_code}: {' '.join(said.split())}"


def _wrong_fields(response: httpx.Response) -> list[tuple[str, str]]:
    """(path, message) of each field that a problem document names."""
    try:
        return [(str(error["path"]), str(error["message"])) for error in response.json().get("errors") or ()]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []


def _seconds(retry_after: str) -> float:
    try:
        return float(retry_after)
    except ValueError:
        return 0.0


def order_of(prompts: int, *, rounds: int, seed: int, shuffle: bool) -> np.ndarray:
    """(R,) the row to play in each round: whole passes over the table, each shuffled again or in file order."""
    rng = np.random.default_rng(seed)
    passes = -(-rounds // prompts)
    rows = [rng.permutation(prompts) if shuffle else np.arange(prompts) for _ in range(passes)]
    return np.concatenate(rows)[:rounds]


def bandit_name(prefix: str, label: str, seed: int) -> str:
    """The bandit of one run. Draws are keyed by it, so it depends on nothing else: other contenders do not change its draws.

    >>> bandit_name("replay", "pak-ucb exploration=0.1", 4)
    'replay-pak-ucb-explorat-2a3dc4-4'
    """
    words = re.sub(r"[^a-z0-9]+", "-", label.lower())[:16].strip("-") or "x"
    return f"{prefix}-{words}-{hashlib.sha256(label.encode()).hexdigest()[:6]}-{seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a table is played.

    rounds: R per run.  seeds: one run of every contender each.  shuffle: the order differs by seed, else it is that of the file.
    bandit_seed: of random features; None = the run's seed.  prices: (K,) per arm.  prefix: of the bandits' names.
    keep: leave the bandits on the server.
    """

    rounds: int
    seeds: tuple[int, ...]
    embedder: str
    prices: tuple[float, ...]
    shuffle: bool = True
    bandit_seed: int | None = None
    prefix: str = "replay"
    keep: bool = False


Each = Callable[[str, float], object]
"""Called after every round: which run, and the reward of the round."""


def play_all(
    api: Api, table: Table, contenders: Sequence[Contender], plan: Plan, *, each: Each = lambda run, reward: None
) -> list[Run]:
    """Every contender once per seed, one after the other; the contenders of one seed see the same prompts in the same order."""
    bodies = table.bodies(plan.embedder) if any(contender.contextual for contender in contenders) else []
    runs = []
    for seed in plan.seeds:
        order = order_of(len(table.prompts), rounds=plan.rounds, seed=seed, shuffle=plan.shuffle)
        for contender in contenders:
            path = f"/v1/bandits/{bandit_name(plan.prefix, contender.label, seed)}"
            api.call("PUT", path, _configuration(table, contender, plan, seed=seed))
            start = time.perf_counter()
            try:
                picks = _play(
                    api,
                    path,
                    table,
                    order=order,
                    bodies=bodies if contender.contextual else [],
                    each=partial(each, f"{contender.label}, seed {seed}"),
                )
            finally:
                if not plan.keep:
                    _delete(api, path)
            seconds = time.perf_counter() - start
            runs.append(Run(label=contender.label, seed=seed, order=order, picks=picks, seconds=seconds))
    return runs


def _configuration(table: Table, contender: Contender, plan: Plan, *, seed: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "policy": dict(contender.policy),
        "arms": [{"name": arm, "price": price} for arm, price in zip(table.arms, plan.prices, strict=True)],
        "seed": seed if plan.bandit_seed is None else plan.bandit_seed,
    }
    if contender.contextual:
        body["prompt"] = {"embedder": plan.embedder} | ({"dim": table.vectors.shape[1]} if plan.embedder == "vector" else {})
    return body


def _play(
    api: Api,
    path: str,
    table: Table,
    *,
    order: np.ndarray,
    bodies: Sequence[Mapping[str, str]],
    each: Callable[[float], object],
) -> np.ndarray:
    """(R,) the picks. bodies: the prompts as the API takes them, () = none are posted."""
    index = {arm: k for k, arm in enumerate(table.arms)}
    picks = np.full(len(order), STOP)
    for r, t in enumerate(order.tolist()):
        prompt = {"prompt": bodies[t]} if bodies else {}
        decision = api.call("POST", f"{path}/decisions", {"id": f"r{r}", **prompt})
        if decision["stop"]:  # nothing was asked, nothing was earned, and there is no outcome to post
            each(0.0)
            continue
        picks[r] = k = index[decision["arm"]]
        reward = float(table.rewards[t, k])
        cost = {"cost": float(table.costs[t, k])} if table.has_costs else {}
        api.call("PUT", f"{path}/decisions/r{r}/outcome", {"reward": reward, **cost})
        each(reward)
    return picks


def _delete(api: Api, path: str) -> None:
    """Clean up; a failure here must not hide the one that led here, nor spoil a replay that is complete."""
    try:
        answer = api.client.request("DELETE", api.url + path)
    except httpx.TransportError:
        return  # the server is gone, or the one that led here tells more
    if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
        click.echo(f"nextarm: a bandit was left behind: {_problem('DELETE', path, answer)}", err=True)
