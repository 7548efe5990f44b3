"""What a prompt costs through LiteLLM's proxy, and what a router adds that asks nextarm instead, in turn in one run.

    wrk --> upstream                                            answers at once               bench/comparison/upstream.py
        --> LiteLLM proxy --> upstream, as ARMS deployments     simple-shuffle, one worker, no database, no key
        --> nextarm: POST decision, PUT outcome                 PAK-UCB, p = 256, ARMS arms, d = 384, SQLite

CPU is the user and system time of the processes that serve: of the proxy and its upstream, of the upstream, of nextarm. What the
proxy adds is the difference to the upstream of the same round; what nextarm adds is all of its two requests. The proxy is served
kindly: without access log, and by uvloop and httptools, as the others are.
"""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.comparison import asking, environment, upstream
from bench.comparison.learners import ENTRIES
from bench.performance.load_testing import wrk
from bench.performance.load_testing.measure import Slice, measured, middles
from bench.performance.load_testing.plans import reward
from bench.performance.load_testing.rig import ARMS, BODIES, Rig, ask_bodies, service
from tools import processes
from tools.processes import free_port

REQUIREMENTS = (ENTRIES["LiteLLM router"].package.replace("litellm", "litellm[proxy]"), "httptools")
"""The release of the table of libraries; httptools is what the service is read by."""
PACKAGES = ("litellm", "uvicorn", "uvloop", "httptools")
CONNECTIONS = (1, 16)
ROUNDS, SECONDS = 3, 4
WARM = 200
"""Prompts through the proxy before it is measured; enough to see each deployment answer."""
START_S = 120.0
ALONE, THROUGH, NEXTARM = "upstream alone", "LiteLLM proxy, upstream", "nextarm: decision, outcome"

SETTINGS = {
    "LITELLM_MODE": "PRODUCTION",  # reads no .env
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "true",
    # what it would fetch when it starts; its own copies serve
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
}
"""All that the environment tells the proxy: there is neither a key in it nor a database nor a place to report to."""
LOGS = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.access": {"level": "CRITICAL"}}}


class NotStarted(Exception):
    """A process that was started did not answer, or answers something else."""


# -- what is measured --------------------------------------------------------------------------------------------------------


def config(url: str, *, arms: int = ARMS) -> dict[str, Any]:
    """One model name over so many deployments, each of a path of its own of the upstream at `url`."""
    deployments = [
        {
            "model_name": "any",
            "litellm_params": {
                "model": f"openai/{upstream.MODEL}",
                "api_base": url + upstream.path(f"arm-{arm}").removesuffix("/chat/completions"),
                "api_key": "none",
            },
        }
        for arm in range(arms)
    ]
    return {
        "model_list": deployments,
        "router_settings": {"routing_strategy": "simple-shuffle", "num_retries": 0},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }


def chats(model: str, n: int = BODIES) -> list[str]:
    """So many bodies of questions."""
    return [
        json.dumps({"model": model, "messages": [{"role": "user", "content": f"Question {reward(i)}: which arm is this?"}]})
        for i in range(n)
    ]


@contextmanager
def running(command: Sequence[str], *, port: int, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[int]:
    """The pid of a server of loopback that listens; it is ended with the block. settings: its whole environment but the path."""
    # our own programs find this project where the bench runs; the proxy finds nothing in an empty folder
    environment = None if settings is None else {"PATH": "/usr/bin:/bin", "HOME": str(folder), **settings}
    with ExitStack() as stack:
        try:
            pid = stack.enter_context(
                processes.running(command, port=port, folder=folder, environment=environment, patience_s=START_S)
            )
        except processes.ServerFailed as error:
            raise NotStarted(str(error)) from error
        yield pid


def warmed(port: int) -> None:
    """Ask the proxy until each deployment should have answered; `NotStarted` where one did not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=wrk.STALL_S)
    seen = set()
    try:
        for body in chats("any", WARM):
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise NotStarted(f"the proxy answers {answer.status}: {content[:200]!r}")
            seen.add(json.loads(content)["choices"][0]["message"]["content"])
    except (OSError, http.client.HTTPException) as error:
        raise NotStarted(f"the proxy does not answer: {error!r}") from error
    except (ValueError, LookupError) as error:
        raise NotStarted(f"the proxy's answer is no completion: {content[:200]!r}") from error
    finally:
        connection.close()
    if seen != {f"arm-{arm}" for arm in range(ARMS)}:
        raise NotStarted(f"after {WARM} prompts the proxy has asked {len(seen)} of {ARMS} deployments")


Ask = Callable[[int, int], Slice]
"""Connections, seconds -> a slice."""


@contextmanager
def targets(folder: Path) -> Iterator[list[Ask]]:
    """All three, warm."""
    with ExitStack() as stack:
        port, front = free_port(), free_port()
        told = [sys.executable, "-m", "bench.comparison.upstream", str(port)]
        behind = stack.enter_context(running(told, port=port, folder=folder))
        written, logs = folder / "proxy.yaml", folder / "logs.json"
        written.write_text(json.dumps(config(f"http://127.0.0.1:{port}")))  # YAML contains JSON
        logs.write_text(json.dumps(LOGS))
        program = [str(environment.python()), str(environment.HOME / "bin" / "litellm"), "--config", str(written)]
        program += ["--host", "127.0.0.1", "--port", str(front), "--num_workers", "1", "--log_config", str(logs)]
        proxy = stack.enter_context(running(program, port=front, folder=folder, settings=SETTINGS))
        warmed(front)
        direct, through = folder / "direct", folder / "through"
        direct.write_text("\n".join(chats(upstream.MODEL)))
        through.write_text("\n".join(chats("any")))
        rig = stack.enter_context(service(NEXTARM))
        alone = asking.Asked(path=upstream.path("arm-0"), file=str(direct))
        fronted = asking.Asked(path="/v1/chat/completions", file=str(through))
        yield [
            partial(on_models, folder, ALONE, f"http://127.0.0.1:{port}", alone, [behind]),
            partial(on_models, folder, THROUGH, f"http://127.0.0.1:{front}", fronted, [proxy, behind]),
            partial(on_nextarm, folder, rig),
        ]


def on_models(
    folder: Path, name: str, url: str, asked: asking.Asked, pids: Sequence[int], connections: int, seconds: int
) -> Slice:
    """A slice of prompts of one request."""

    def drive() -> list[wrk.Counted]:
        return [wrk.ended(asking.begin(url, asked, folder=folder, connections=connections, seconds=seconds))]

    return measured(drive, case="prompt", target=name, connections=connections, pids=pids)


def on_nextarm(folder: Path, rig: Rig, connections: int, seconds: int) -> Slice:
    """A slice of prompts of two requests, on a bandit of its own that has learnt; counted by its outcomes."""
    asks = folder / "asks"
    asks.write_text("\n".join(ask_bodies()))
    with rig.bandit() as name:
        asked = asking.Asked(path=f"/v1/bandits/{name}/decisions", file=str(asks), pairs=True)

        def drive() -> list[wrk.Counted]:
            return [wrk.ended(asking.begin(rig.urls[0], asked, folder=folder, connections=connections, seconds=seconds))]

        return measured(
            drive,
            case="prompt",
            target=rig.name,
            connections=connections,
            pids=rig.pids,
            accepted=lambda: rig.counts(name)[1],
        )


def play(*, rounds: int = ROUNDS, seconds: int = SECONDS, show: Callable[[Slice], None]) -> list[Slice]:
    """All slices; who begins changes from round to round. `NotStarted` with the reason where something does not start."""
    if not wrk.available():
        raise NotStarted("there is no wrk on this machine")
    if failed := environment.install(*REQUIREMENTS):
        raise NotStarted(f"pip: {failed}")
    slices = []
    with tempfile.TemporaryDirectory(prefix="nextarm-proxy-") as name:
        folder = Path(name)
        with targets(folder) as order:
            for turn in range(rounds):
                for connections in CONNECTIONS:
                    for ask in order[turn % 3 :] + order[: turn % 3]:
                        slices.append(ask(connections, seconds))
                        show(slices[-1])
    return slices


# -- telling -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Added:
    """Per prompt, medians over the rounds; low and high: of cpu_us over the rounds."""

    cpu_us: float
    low: float
    high: float
    p50_ms: float


def added(slices: Sequence[Slice], *, connections: int, target: str, beneath: str = "") -> Added:
    """What a target costs beyond another one, measured in the same round: the median of differences forgets a round that was
    slow for both. beneath: "" = beyond nothing.
    """
    chosen = [piece for piece in slices if piece.connections == connections]
    above = [piece for piece in chosen if piece.target == target]
    below = [piece for piece in chosen if piece.target == beneath]
    pairs = list(zip(above, below, strict=True)) if beneath else [(piece, None) for piece in above]
    cpu = [piece.cpu_us - (under.cpu_us if under else 0.0) for piece, under in pairs]
    p50 = [piece.p50_ms - (under.p50_ms if under else 0.0) for piece, under in pairs]
    return Added(cpu_us=statistics.median(cpu), low=min(cpu), high=max(cpu), p50_ms=statistics.median(p50))


def table(slices: Sequence[Slice]) -> str:
    """Markdown: what was measured, then what each of both adds."""
    lines = [
        "| connections | asked | CPU per prompt, us | lowest to highest | prompts per s | p50 ms | p99 ms | errors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = middles(slices)
    for connections in CONNECTIONS:
        for target in (ALONE, THROUGH, NEXTARM):
            m = found["prompt", connections, target]
            lines.append(
                f"| {connections} | {target} | {m.cpu_us:,.0f} | {m.low:,.0f} to {m.high:,.0f} | {m.per_s:,.0f} "
                f"| {m.p50_ms:.2f} | {m.p99_ms:.2f} | {m.errors} |"
            )
    lines += [
        "",
        "| added to a prompt | connections | CPU, us | lowest to highest | p50, ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for connections in CONNECTIONS:
        for name, target, beneath in (("by the LiteLLM proxy", THROUGH, ALONE), ("by asking nextarm", NEXTARM, "")):
            more = added(slices, connections=connections, target=target, beneath=beneath)
            spread = f"{more.low:,.0f} to {more.high:,.0f}"
            lines.append(f"| {name} | {connections} | {more.cpu_us:,.0f} | {spread} | {more.p50_ms:.2f} |")
    return "\n".join(lines)
