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
import httpx2
import numpy as np
from nextarm import APIConnectionError, APIStatusError, Client, NextarmError, NotFoundError

from service.cli.replay.errors import ServerError
from service.cli.replay.tables import Table

STOP = -1
"""The pick of a round in which the policy found no arm worth asking."""

RETRIES = 5


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
    """One service, whose failures are one clear line each."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.url = client.url

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of one request; `ServerError` for anything but a 2xx. ids make every call here idempotent."""
        try:
            return self.client.request(method, path, body=body)
        except NextarmError as error:
            raise ServerError(_line(method, path, error), wrong=[(field.path, field.message) for field in error.errors]) from None


@contextmanager
def connect(url: str, *, private: bool, api_key: str = "") -> Iterator[Api]:
    """Open a connection. private: a server of our own on loopback, for which proxies of the environment do not hold."""
    http = httpx2.Client(trust_env=not private)
    timeout = httpx2.Timeout(120.0, connect=10.0)
    with Client(url, api_key=api_key, timeout=timeout, max_retries=RETRIES, backoff_s=0.1, http_client=http) as client:
        yield Api(client)


def _line(method: str, path: str, error: NextarmError) -> str:
    """What a request came to."""
    said = " ".join(str(error).split())
    return f"{method} {path} answered {said}" if isinstance(error, APIStatusError) else said


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
        api.client.with_options(max_retries=0).request("DELETE", path)
    except (APIConnectionError, NotFoundError):
        return  # the server is gone, or the one that led here tells more
    except NextarmError as error:
        click.echo(f"nextarm: a bandit was left behind: {_line('DELETE', path, error)}", err=True)
