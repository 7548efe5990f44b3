"""`nextarm evaluate`: what other policies would have earned, from a log, or by a running service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.cli.dask_cluster import evaluate_on_cluster
from service.engine.evaluation_process import EvaluationFailed, Plan, evaluate_in_process, evaluate_source
from service.storage.base import StorageUnavailableError


class InvalidCandidate(StorageUnavailableError):
    """A policy that was asked for cannot be evaluated on this log."""


def parse_candidate(text: str) -> dict[str, Any]:
    """`pak-ucb`, `frozen:OFFSET`, `shadow:NAME`, or a JSON object as the `policy` of a bandit."""
    text = text.strip()
    if text.startswith("shadow:"):
        return {"shadow": text.removeprefix("shadow:")}
    if text.startswith("frozen:"):
        offset = text.removeprefix("frozen:")
        if not (offset.isascii() and offset.isdigit() and int(offset)):
            raise InvalidCandidate(f"--policy {text!r}: behind the colon stands an offset of the log, 1 or more")
        return {"frozen": int(offset)}
    if not text.startswith("{"):
        return {"kind": text}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidCandidate(f"--policy {text!r} is no JSON object: {error}") from None
    if not isinstance(found.get("kind"), str):
        raise InvalidCandidate(f'--policy {text!r} has no "kind"')
    return dict(found)


def split(plan: Plan, jobs: int) -> list[Plan]:
    """So many plans at most, each with its share of the policies."""
    shares = [plan.policies[job::jobs] for job in range(min(jobs, len(plan.policies)))] or [[]]
    return [msgspec.structs.replace(plan, policies=share) for share in shares]


def join(plan: Plan, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of a plan from those of its `split`."""
    found = [iter(part["policies"]) for part in parts]
    return parts[0] | {"policies": [next(found[place % len(found)]) for place in range(len(plan.policies))]}


def evaluate_on(executor: str, plan: Plan, *, jobs: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """The results, by the workers of a cluster. jobs: at most so many shares of the policies; None = as many as workers have
    threads.
    """
    if plan.settings is None:
        plan = msgspec.structs.replace(plan, source=str(Path(plan.source).resolve()))
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"{executor} evaluates {plan.source}", total=None)
        try:
            parts = evaluate_on_cluster(
                executor,
                lambda threads: split(plan, jobs or threads),
                lambda count, total: progress.update(task, completed=count, total=total),
            )
        except EvaluationFailed as error:
            raise InvalidCandidate(str(error)) from None
    return join(plan, parts)


async def evaluate(plan: Plan, *, jobs: int = 1, quiet: bool = False) -> dict[str, Any]:
    """The results. jobs: processes, each with its share of the policies and a pass over the log of its own."""
    shares = split(plan, jobs)
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"evaluating on {plan.source}", total=plan.until or None)
        reached = [0] * len(shares)

        def shown(job: int) -> Callable[[int], None]:
            def show(offset: int) -> None:
                reached[job] = offset
                progress.update(task, completed=min(reached))

            return show

        try:
            if len(shares) == 1:
                return await evaluate_source(plan, shown(0))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(evaluate_in_process(share, shown(job))) for job, share in enumerate(shares)]
        except ExceptionGroup as errors:
            raise InvalidCandidate(str(errors.exceptions[0])) from None
        except EvaluationFailed as error:
            raise InvalidCandidate(str(error)) from None
    return join(plan, [task.result() for task in tasks])


LOOK_S = 0.2
"""Between two looks at an evaluation of a service; ten times that once it has run for long."""


def evaluate_remotely(plan: Plan, *, url: str, api_key: str, quiet: bool) -> dict[str, Any]:
    """The results, by the service that has the bandit `plan.source`, which goes on with it where this call is interrupted."""
    from nextarm import Client, NextarmError

    request: dict[str, Any] = {
        "policies": plan.policies,
        "estimators": list(plan.estimators),
        "confidence": plan.confidence,
    }
    if plan.since != "":
        request["since"] = int(plan.since) if str(plan.since).isdigit() else plan.since
    if plan.reward_range is not None:
        request["reward_range"] = list(plan.reward_range)
    try:
        with (
            Client(url, api_key=api_key) as client,
            Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress,
        ):
            task = progress.add_task(f"{url} evaluates {plan.source}", total=1.0)
            known = client.post_evaluation(plan.source, **request)
            looks = 0
            while known.state not in ("done", "failed"):
                time.sleep(LOOK_S * min(1 + looks / 10, 10))
                looks += 1
                known = client.show_evaluation(plan.source, known.id)
                progress.update(task, completed=known.progress)
            if known.state == "failed":
                raise InvalidCandidate(f"{plan.source}: {known.failure}")
            found = json.loads(client.with_raw_response.show_evaluation(plan.source, known.id).content)
    except NextarmError as error:
        raise InvalidCandidate(f"{url}, bandit {plan.source}: {error}") from None
    names = ("decisions", "left_out", "behaviour", "policies", "fixed_arms", "best_fixed_arm")
    asked = {"bandit": plan.source, "estimator": plan.estimators[0], "confidence": plan.confidence}
    return asked | {name: found[name] for name in names}


def as_table(results: dict[str, Any], *, width: int = 80) -> Table:
    """The same to look at, the best value first; reasons stand below it. width: columns of the terminal."""
    left_out = ", ".join(f"{count} {why}" for why, count in sorted(results["left_out"].items()))
    has_anytime = results["behaviour"]["anytime_interval"] is not None
    table = Table(
        title=f"{results['bandit']}: {results['decisions']} decisions with a reward"
        + (f" (left out: {left_out})" if left_out else ""),
        caption="\n".join(_reasons(results)) or None,
        caption_justify="left",
        padding=(0, 1, 0, 0),
        box=None,
        width=width,
    )
    table.add_column("policy", overflow="fold", ratio=1)
    for name in ("reward", "interval", *(["anytime"] if has_anytime else []), "sample", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for one in ordered(results):
        table.add_row(
            one["label"],
            _text(one["value"]),
            _interval(one["interval"]),
            *([_interval(one["anytime_interval"])] if has_anytime else []),
            f"{one['effective_sample']:.0f}",
            one["verdict"],
        )
    return table


def ordered(results: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The best value first. The best fixed arm is among the fixed arms, so the table has it once."""
    several = [results["behaviour"], *results["policies"], *results["fixed_arms"]]
    return sorted(several, key=lambda one: -one["value"] if one["value"] is not None else float("inf"))


def _reasons(results: dict[str, Any]) -> list[str]:
    """Each reason once, with the policies that it is about."""
    about: dict[str, list[str]] = {}
    for one in ordered(results):
        if one["reason"]:
            about.setdefault(one["reason"], []).append(one["label"])
    return [f"{', '.join(labels)}: {reason}" for reason, labels in about.items()]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(pair: Sequence[float | None]) -> str:
    return f"{_text(pair[0])} to {_text(pair[1])}"
