"""A callback of LiteLLM: nextarm chooses the deployment of each request, and learns what came of it.

    import litellm
    from nextarm.litellm import NextarmCallback
    litellm.callbacks = [NextarmCallback(bandit="router")]

The proxy takes `callbacks: ["nextarm.litellm.callback"]`. LiteLLM is imported when the class is asked for, and by nothing else
of this package; docs/litellm.md lists what is learned.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import httpx2

from nextarm._calls import encoded, new_id
from nextarm._reports import LARGEST_BATCH, Report
from nextarm._retries import CircuitBreaker
from nextarm._session import State
from nextarm.async_client import AsyncClient
from nextarm.bodies import ArmChange
from nextarm.errors import (
    APIConnectionError,
    ConflictError,
    InvalidRequestError,
    NextarmError,
    NotFoundError,
    ServerError,
)
from nextarm.models import Bandit, Decision, Problem

Request: TypeAlias = Mapping[str, Any]
"""What the router hands to callbacks: the arguments of the call, with `metadata`."""
Reward: TypeAlias = Callable[[Any, Request], float | Awaitable[float | None] | None]
"""The reward of an answer, from the response and LiteLLM's `kwargs`; None where it comes later, or never."""
PromptReader: TypeAlias = Callable[[Any, Request], Any]
"""The prompt of a request, from its messages and its arguments, in any form that `Client.decide` takes; None = no prompt."""

OPEN_S = 5.0
"""For so long the router's own strategy decides after the service has failed; then one request tries it again."""
FRESH_S = 60.0
"""Age at which arms and settings of the bandit are read again, in the background."""
QUIET_S = 60.0
"""Between two warnings of one kind."""
LINGER_S = 0.1
"""An outcome waits so long for others: posted together, each costs a tenth of a request."""
KEY = "nextarm"
"""In the metadata of a request."""
MOST_ATTEMPTS = 256
"""Requests that may share one metadata dict."""
DUMMY = [{"role": "user", "content": "prompt"}]
"""What the router hands over in place of messages for requests that have none."""
OF_ARMS = (401, 404, 408, 429)
"""Client errors that speak of the deployment (its key, its name, its load) and not of the request, as LiteLLM sees it, too."""
HOOKS = ("async_post_call_response_headers_hook",)
"""Hooks that the proxy looks for in the class of an instance, and not in its bases."""

log = logging.getLogger("nextarm.litellm")


class Attempts(dict[str, dict[str, Any]]):
    """The decisions of requests by trace id, in their metadata.

    In the proxy, metadata comes with the request: only an instance of this class is believed, which JSON cannot make. What it
    holds is JSON, for other loggers.
    """

    @staticmethod
    def of(*sources: Any) -> Attempts | None:
        """Those in the metadata of the first of the requests that has any."""
        for source in sources:
            for name in ("metadata", "litellm_metadata"):
                metadata = source.get(name) if isinstance(source, Mapping) else None
                if isinstance(metadata, Mapping) and isinstance(found := metadata.get(KEY), Attempts):
                    return found
        return None

    def put(self, trace: str, decision: Decision, *, deployments: list[str], tried: list[str]) -> None:
        """Keep the decision of a request. deployments: ids of those of its arm.  tried: arms before it.

        closed: "" while open, "answered" or "failed".
        """
        self.pop(trace, None)
        if len(self) >= MOST_ATTEMPTS:
            del self[next(iter(self))]
        self[trace] = {
            "bandit": decision.bandit,
            "decision": decision.id,
            "arm": decision.arm,
            "propensity": decision.propensity,
            "deployments": deployments,
            "tried": tried,
            "closed": "",
        }

    def find(self, trace: Any) -> dict[str, Any] | None:
        """The latest attempt of a request; of the only one, where LiteLLM names it otherwise or not at all."""
        return self.get(str(trace)) or (next(iter(self.values())) if len(self) == 1 else None)


@dataclass(frozen=True)
class View:
    """What has to be known of a bandit. arms: each with its price; retired: names that are not to be brought back."""

    arms: Mapping[str, float]
    retired: frozenset[str]
    has_prompt: bool
    reads_last: bool
    has_sessions: bool
    has_scorer: bool
    read_at: float

    @classmethod
    def of(cls, bandit: Bandit) -> View:
        """The view of an answer of the service."""
        return cls(
            arms={arm.name: arm.price for arm in bandit.arms if arm.active},
            retired=frozenset(arm.name for arm in bandit.arms if not arm.active),
            has_prompt=bandit.prompt is not None,
            reads_last=bandit.prompt is not None and bandit.prompt.reads == "last_user",
            has_sessions=bandit.session_ttl_s is not None,
            has_scorer=bandit.reward.source != "client",
            read_at=time.monotonic(),
        )


@dataclass
class Clients:
    """The clients of an event loop. deciding: without retries, as the router has a strategy of its own.

    outbox: bandit and outcome of what is posted together.  sender: the task that does that.
    """

    plain: AsyncClient
    deciding: AsyncClient
    outbox: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sender: asyncio.Task[Any] | None = None


class Hooks:
    """What the callback does; `NextarmCallback` is this and LiteLLM's `CustomLogger`.

    Args:
        bandit: that decides, for every model group; or a mapping of model groups to bandits, and others are left alone.
            Left out, it is `NEXTARM_BANDIT` of the environment.
        url: of the service; left out, it is `NEXTARM_URL`, or http://127.0.0.1:8000.
        api_key: of the service; left out, it is `NEXTARM_API_KEY`.
        tenant: beside an admin's key without a tenant.
        reward: gives the reward of an answer; may be async. Without it the outcome holds cost and signals, and waits for the
            reward that is posted under the decision's id; a scorer of the bandit gets the answer's text.
        prompt: gives the prompt of a request, in place of its messages.
        sends_output: whether outcomes hold the answer's text; None = where the bandit has a scorer.
        sync_arms: add deployments that the bandit does not have as arms, and keep their prices; needs the key of an admin.
        create: with `sync_arms`, the body of the bandit, without arms, if there is none yet.
        price_tokens: prompt and completion tokens of a typical call, which make its price from prices per token.
        decide_within_s: the longest that a request waits for a decision.
        http_client: makes the HTTP client of an event loop.
    """

    def __init__(
        self,
        bandit: str | Mapping[str, str] | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        tenant: str = "",
        reward: Reward | None = None,
        prompt: PromptReader | None = None,
        sends_output: bool | None = None,
        sync_arms: bool = False,
        create: Mapping[str, Any] | None = None,
        price_tokens: tuple[int, int] = (1000, 300),
        decide_within_s: float = 1.0,
        http_client: Callable[[], httpx2.AsyncClient] = httpx2.AsyncClient,
    ) -> None:
        super().__init__()
        bandit = bandit if bandit is not None else os.environ.get("NEXTARM_BANDIT", "")
        if not bandit:
            raise ValueError("name the bandit: NextarmCallback(bandit=...), or NEXTARM_BANDIT in the environment")
        if create is not None and not sync_arms:
            raise ValueError("create makes a bandit of LiteLLM's deployments: set sync_arms=True, too")
        self.bandit = bandit
        self.reward, self.prompt, self.sends_output = reward, prompt, sends_output
        self.sync_arms, self.create, self.price_tokens = sync_arms, create, price_tokens
        self.decide_within_s = decide_within_s
        self.breaker = CircuitBreaker(open_s=OPEN_S, longest_s=OPEN_S)
        self._url = url or os.environ.get("NEXTARM_URL", "http://127.0.0.1:8000")
        self._setup: dict[str, Any] = {"api_key": api_key, "tenant": tenant}
        self._http_client = http_client
        self._state: State | None = None
        self._clients: dict[asyncio.AbstractEventLoop, Clients] = {}
        self._views: dict[str, View] = {}
        self._reading: set[str] = set()
        self._prices: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._warned: dict[str, float] = {}
        AsyncClient(self._url, **self._setup)  # a wrong URL is an error at the start, and not of each request

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in HOOKS:
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    # -- LiteLLM's hooks; names of arguments are its own -------------------------------------------------------------------------

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """The deployments of the chosen arm; all of them where nextarm does not decide."""
        bandit = self.bandit if isinstance(self.bandit, str) else self.bandit.get(model)
        if not bandit or not healthy_deployments or request_kwargs is None:
            return healthy_deployments
        try:
            return await self._choose(bandit, model, healthy_deployments, messages, request_kwargs)
        except Exception as error:  # one that leaves here would fail the request
            self._warn(type(error).__name__, "LiteLLM decides by itself: %s", error)
            return healthy_deployments

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Post what came of an answered request."""
        try:
            attempt = _attempt_of(kwargs)
            if attempt is None or attempt["closed"] or not _is_of(attempt, kwargs):
                return
            attempt["closed"] = "answered"
            client = self._client().plain
            if kwargs.get("cache_hit"):  # no arm was called
                await client.cancel_decision(attempt["bandit"], attempt["decision"])
                return
            self._post(attempt, await self._outcome(attempt, kwargs, response_obj, start_time, end_time))
        except Exception as error:
            self._warn("outcome", "an outcome is not learned: %s", error)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Close the decision of a failed request."""
        attempt = _attempt_of(kwargs)
        if attempt is not None and _is_of(attempt, kwargs):
            self._fail(attempt, kwargs.get("exception"))

    async def async_post_call_failure_deployment_hook(
        self, request_data: Any, exception: Any, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Close the decision of a failed attempt, before the next one."""
        attempt = _attempt_of(request_data)
        if attempt is not None and _is_of(attempt, request_data):
            self._fail(attempt, exception)

    async def async_post_call_response_headers_hook(
        self,
        data: Any,
        user_api_key_dict: Any,
        response: Any,
        request_headers: Any = None,
        litellm_call_info: Any = None,
    ) -> dict[str, str]:
        """Headers of the proxy's answer: `x-nextarm-decision-id`, `-arm` and `-propensity`."""
        attempt = _attempt_of(data)
        if attempt is None:
            return {}
        headers = {"x-nextarm-decision-id": attempt["decision"], "x-nextarm-arm": quote(attempt["arm"], safe="/:@+,; ")}
        if attempt["propensity"] is not None:
            headers["x-nextarm-propensity"] = f"{attempt['propensity']:.6g}"
        return headers

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
        """Warn of a call that the router makes without asking: LiteLLM skips callbacks in `Router.completion()`."""
        params = kwargs.get("litellm_params") or {}
        group = (params.get("metadata") or {}).get("model_group")
        if params.get("acompletion") is False and group and (isinstance(self.bandit, str) or group in self.bandit):
            self._warn("sync", "Router.completion() does not ask nextarm; call Router.acompletion() for model group %r", group)

    # -- a decision --------------------------------------------------------------------------------------------------------------

    async def _choose(self, bandit: str, model: str, deployments: list[Any], messages: Any, request: dict[str, Any]) -> list[Any]:
        metadata, trace = _metadata(request), str(request.get("litellm_trace_id") or "")
        tried = self._close_previous(Attempts.of(request), trace)
        if not self.breaker.is_request_allowed(2.0 * self.decide_within_s):
            return deployments
        by_arm: dict[str, list[Any]] = {}
        for deployment in deployments:
            by_arm.setdefault(arm_of(deployment), []).append(deployment)
        clients = self._client()
        async with self._watched():
            view = await self._view(bandit, clients.plain)
            if self.sync_arms:
                view = await self._sync_arms(bandit, clients.plain, view, by_arm)
        known = [arm for arm in by_arm if arm in view.arms]
        if len(known) < len(by_arm):
            missing = ", ".join(sorted(by_arm.keys() - view.arms.keys()))
            self._warn("arms", "bandit %r does not choose %s: no active arms of it; add them, or set sync_arms", bandit, missing)
        if not known:
            self.breaker.record_answer()
            return deployments
        arms = [arm for arm in known if arm not in tried] or known
        question: dict[str, Any] = {
            "id": new_id(),
            "arms": arms,
            "metadata": {"model_group": model},
            **self._context(view, messages, request),
        }
        try:
            async with self._watched():
                decision = await clients.deciding.decide(bandit, fallback="", **question)
        except NotFoundError:  # an arm was retired since
            self._views.pop(bandit, None)
            raise
        except (TimeoutError, APIConnectionError, ServerError):  # it may have been decided
            self._spawn(self._cancel(clients.plain, bandit, question["id"]))
            raise
        self.breaker.record_answer()
        if decision.arm is None or not decision.id:  # none is worth it; a router has to answer all the same
            return deployments
        chosen = by_arm[decision.arm]
        if (attempts := Attempts.of(request)) is None:
            attempts = metadata[KEY] = Attempts()
        attempts.put(trace, decision, deployments=[_id(deployment) for deployment in chosen], tried=tried)
        return chosen

    def _context(self, view: View, messages: Any, request: Request) -> dict[str, Any]:
        """Prompt and session of a request, where the bandit takes them."""
        context: dict[str, Any] = {}
        if view.has_prompt:
            given = self.prompt(messages, request) if self.prompt else prompt_of(messages, request, reads_last=view.reads_last)
            context |= {} if given is None else {"prompt": given}
        if view.has_sessions and (session := session_of(request)):
            context["session"] = session
        return context

    def _close_previous(self, attempts: Attempts | None, trace: str) -> list[str]:
        """The arms that were tried for a request; what is still open of them has failed."""
        previous = None if attempts is None else attempts.get(trace)
        if previous is None or previous["closed"] == "answered":
            return []
        self._fail(previous, None)
        return [*previous["tried"], previous["arm"]]

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """A block that may take `decide_within_s`; after a failure the service is left alone for a while."""
        try:
            async with asyncio.timeout(self.decide_within_s):
                yield
        except (TimeoutError, NextarmError) as error:
            self._note_failure(error)
            raise

    def _note_failure(self, error: Exception) -> None:
        """Leave the service alone for a while, unless it refused this one request."""
        is_about_request = isinstance(error, InvalidRequestError) or (isinstance(error, NotFoundError) and "arm" in error.code)
        if is_about_request:
            self.breaker.record_answer()
        else:
            self.breaker.record_failure(getattr(error, "retry_after_s", None))

    async def _view(self, bandit: str, client: AsyncClient) -> View:
        """What is known of a bandit; read again in the background when it is old."""
        view = self._views.get(bandit)
        if view is None:
            return await self._read(bandit, client)
        if time.monotonic() - view.read_at > FRESH_S and bandit not in self._reading:
            self._reading.add(bandit)
            self._spawn(self._read(bandit, client), lambda: self._reading.discard(bandit))
        return view

    async def _read(self, bandit: str, client: AsyncClient) -> View:
        try:
            shown = await client.show_bandit(bandit)
        except NotFoundError:
            if self.create is None:
                raise
            view = View({}, frozenset(), has_prompt=False, reads_last=False, has_sessions=False, has_scorer=False, read_at=0.0)
        else:
            view = View.of(shown)
        self._views[bandit] = view
        return view

    async def _sync_arms(
        self, bandit: str, client: AsyncClient, view: View, by_arm: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> View:
        """The view after new deployments, and new prices, have become arms. What an operator retired stays retired."""
        prices = {arm: price_of(deployments[0], self.price_tokens) for arm, deployments in by_arm.items()}
        missing = [arm for arm in prices if arm not in view.arms and arm not in view.retired]
        changed = [
            arm
            for arm, price in prices.items()
            if arm in view.arms and price is not None and price not in (view.arms[arm], self._prices.get((bandit, arm)))
        ]
        if not missing and not changed:
            return view
        if not view.read_at:
            arms = [{"name": arm} | ({} if price is None else {"price": price}) for arm, price in prices.items()]
            with suppress(ConflictError):  # another worker was first; what it lacks comes with the next request
                await client.create_bandit(bandit, **{**(self.create or {}), "arms": arms})
        else:
            for arm in (*missing, *changed):
                # LiteLLM's price counts when it changes; one that was set in the service meanwhile stays until then
                change: ArmChange = {} if (price := prices[arm]) is None else {"price": price}
                await client.put_arm(bandit, arm, **change)
        self._prices |= {(bandit, arm): price for arm, price in prices.items() if price is not None}
        if unpriced := [arm for arm in missing if prices[arm] is None]:
            self._warn("prices", "LiteLLM has no price of %s; set model_info.input_cost_per_token", ", ".join(unpriced))
        return await self._read(bandit, client)

    # -- an outcome --------------------------------------------------------------------------------------------------------------

    async def _outcome(
        self, attempt: Mapping[str, Any], kwargs: Request, response: Any, start: datetime, end: datetime
    ) -> dict[str, Any]:
        """The body of the outcome of an answered request."""
        logged = kwargs.get("standard_logging_object") or {}
        outcome: dict[str, Any] = {"signals": signals_of(kwargs, start, end)}
        cost = logged.get("response_cost") or 0.0
        if cost > 0.0:  # 0 is also what LiteLLM says of a stream without usage and of a model without a price: the arm's counts
            outcome["cost"] = float(cost)
        if self.reward is not None:
            try:
                reward = self.reward(response, kwargs)
                reward = await reward if inspect.isawaitable(reward) else reward
            except Exception as error:
                self._warn("reward", "the reward function failed: %r", error)
                reward = None
            if reward is not None:
                outcome["reward"] = float(reward)
        view = self._views.get(attempt["bandit"])
        is_sent = view is not None and view.has_scorer if self.sends_output is None else self.sends_output
        if is_sent and (text := _text_of(response)):
            outcome["output"] = text
        return outcome

    def _fail(self, attempt: dict[str, Any], exception: BaseException | None) -> None:
        """Close the decision of an attempt that failed, in the background: the next attempt need not wait for it."""
        if attempt["closed"]:
            return
        attempt["closed"] = "failed"
        client = self._client().plain
        status = getattr(exception, "status_code", None)
        is_of_request = isinstance(status, int) and 400 <= status < 500 and status not in OF_ARMS
        if is_of_request:
            self._spawn(self._cancel(client, attempt["bandit"], attempt["decision"]))
            return
        # The message may quote the prompt, or a key: the log gets the kind of the failure alone.
        kind = "failed" if exception is None else type(exception).__name__
        self._post(attempt, {"error": f"{kind} {status}" if isinstance(status, int) else kind})

    def _post(self, attempt: Mapping[str, Any], outcome: dict[str, Any]) -> None:
        """Post an outcome, in the background and together with others."""
        clients = self._client()
        clients.outbox.append((attempt["bandit"], {"decision": attempt["decision"], **outcome}))
        if clients.sender is None or clients.sender.done():
            clients.sender = self._spawn(self._send(clients))

    async def _send(self, clients: Clients) -> None:
        while clients.outbox:
            await asyncio.sleep(LINGER_S)
            bandit = clients.outbox[0][0]
            batch = [outcome for name, outcome in clients.outbox if name == bandit][:LARGEST_BATCH]
            clients.outbox[:] = [entry for entry in clients.outbox if not any(entry[1] is outcome for outcome in batch)]
            try:
                receipts = await clients.plain.observe_all(bandit, batch)
            except NextarmError as error:
                if not error.is_transient:
                    raise
                for outcome in batch:  # the client delivers them when the service is back
                    content = encoded({name: value for name, value in outcome.items() if name != "decision"})
                    clients.plain._session.state.reports.add(Report(key=(bandit, outcome["decision"]), outcome=content))
                clients.plain._transport.deliver()
                continue
            for receipt in receipts.outcomes:
                if isinstance(receipt, Problem):
                    self._warn("outcome", "an outcome is not learned: %s %s", receipt.code, receipt.detail)

    @staticmethod
    async def _cancel(client: AsyncClient, bandit: str, decision: str) -> None:
        with suppress(NotFoundError):  # it never reached the service
            await client.cancel_decision(bandit, decision)

    # -- clients and tasks -------------------------------------------------------------------------------------------------------

    def _client(self) -> Clients:
        """The clients of the running event loop. They share what waits for the service, so that it outlives the loop."""
        loop = asyncio.get_running_loop()
        if (found := self._clients.get(loop)) is not None:
            return found
        for ended in [known for known in self._clients if known.is_closed()]:
            del self._clients[ended]
        plain = AsyncClient(self._url, http_client=self._http_client(), **self._setup)
        if self._state is None:
            self._state = plain._session.state
            self._state.has_fallback = True  # outcomes are put off; the fallback of decisions is the router's strategy
        self._state.is_closing = False
        plain._session.state = self._state
        deciding = plain.with_options(max_retries=0, timeout=self.decide_within_s)
        found = self._clients[loop] = Clients(plain, deciding)
        return found

    def _spawn(self, work: Coroutine[Any, Any, Any], done: Callable[[], None] = lambda: None) -> asyncio.Task[Any]:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._warn(f"background {type(error).__name__}", "%s", error)
            finally:
                done()

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def flush(self, timeout_s: float = 10.0) -> int:
        """Wait until everything is posted; the number of outcomes that still wait for the service."""
        loop = asyncio.get_running_loop()
        while mine := {task for task in self._tasks if task.get_loop() is loop}:
            if not (await asyncio.wait(mine, timeout=timeout_s))[0]:
                break
        return await self._client().plain.flush(timeout_s)

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        if asyncio.get_running_loop() in self._clients:
            await self.flush()
            await self._clients.pop(asyncio.get_running_loop()).plain.aclose()

    def _warn(self, kind: str, text: str, *values: Any) -> None:
        """Log a warning, at most once a minute for each kind."""
        now = time.monotonic()
        if now - self._warned.get(kind, -QUIET_S) >= QUIET_S:
            self._warned[kind] = now
            log.warning(text, *values)


# -- reading LiteLLM's objects ---------------------------------------------------------------------------------------------------


def arm_of(deployment: Mapping[str, Any]) -> str:
    """The name of a deployment's arm: `model_info.nextarm_arm`, else `model_info.id`, else its model.

    >>> arm_of({"litellm_params": {"model": "openai/gpt-5"}, "model_info": {"id": "1", "nextarm_arm": "large"}})
    'large'
    """
    about = deployment.get("model_info") or {}
    return str(about.get("nextarm_arm") or about.get("id") or deployment["litellm_params"]["model"])


def price_of(deployment: Mapping[str, Any], tokens: tuple[int, int]) -> float | None:
    """USD of a call of so many prompt and completion tokens, by the deployment or by LiteLLM's price map; None if unknown.

    >>> round(price_of({"model_info": {"input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6}}, (1000, 300)), 6)
    0.0022
    """
    about, params = deployment.get("model_info") or {}, deployment.get("litellm_params") or {}
    prices: Mapping[str, Any] = getattr(sys.modules.get("litellm"), "model_cost", {})
    model = str(params.get("model", ""))
    names = (about.get("base_model"), params.get("base_model"), model, model.partition("/")[2])
    for source in (params, about, *(prices.get(name) or {} for name in names if name)):
        if source.get("input_cost_per_token") is not None:
            ingoing, outgoing = source["input_cost_per_token"], source.get("output_cost_per_token") or 0.0
            return round(float(ingoing) * tokens[0] + float(outgoing) * tokens[1], 12)
    return None


def prompt_of(messages: Any, request: Request, *, reads_last: bool) -> Any:
    """The prompt of a request; None where it has none, or several. reads_last: only the last message of a user is read.

    >>> prompt_of(None, {"input": ["Good morning"]}, reads_last=True)
    'Good morning'
    """
    if isinstance(text := request.get("prompt"), str):
        return text or None
    said = request.get("messages") or (messages if messages != DUMMY else None) or request.get("input")
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str):
        said = said[0]
    if isinstance(said, str):
        return said or None
    if not isinstance(said, list) or not all(isinstance(message, Mapping) for message in said):
        return None
    # Pictures and sounds stay here: they are megabytes, and only texts are read.
    texts = [{"role": message["role"], "content": text} for message in said if message.get("role") and (text := _said(message))]
    if reads_last:
        texts = [message for message in texts if message["role"] == "user"][-1:]
    return {"messages": texts} if texts else None


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, without its other parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def session_of(request: Request) -> str:
    """The conversation of a request, or "". In the proxy it is one of the key, so that keys do not share their sessions."""
    metadata = request.get("metadata") or request.get("litellm_metadata") or {}
    headers = metadata.get("headers") or (request.get("proxy_server_request") or {}).get("headers") or {}
    given = metadata.get("session_id") or request.get("litellm_session_id") or headers.get("x-session-id")
    if not given:
        return ""
    owner = metadata.get("user_api_key_hash") or metadata.get("user_api_key") or ""
    if not owner and len(str(given)) <= 128:
        return str(given)
    return hashlib.sha256(f"{owner}/{given}".encode()).hexdigest()


def signals_of(kwargs: Request, start: datetime, end: datetime) -> dict[str, float]:
    """What is measured of an answered request: seconds, and tokens where the upstream counts them.

    LiteLLM's own `response_time` ends with the first token of a stream, `latency_s` with the last.
    """
    logged = kwargs.get("standard_logging_object") or {}
    signals = {"latency_s": max((end - start).total_seconds(), 0.0)}
    first = kwargs.get("completion_start_time")
    if logged.get("stream") and isinstance(first, datetime):
        signals["first_token_s"] = max((first - start).total_seconds(), 0.0)
    for name in ("prompt_tokens", "completion_tokens"):
        if logged.get(name):
            signals[name] = float(logged[name])
    return signals


def _text_of(response: Any) -> str:
    """The text of an answer; "" where it has none."""
    choices = getattr(response, "choices", None)
    if choices:
        message = getattr(choices[0], "message", None)
        return getattr(message, "content", None) or getattr(choices[0], "text", None) or ""
    return getattr(response, "output_text", None) or ""


def _metadata(request: dict[str, Any]) -> dict[str, Any]:
    """The dict of a request that comes back with its outcome."""
    for name in ("metadata", "litellm_metadata"):
        if isinstance(found := request.get(name), dict):
            return found
    raise ValueError("the request has no metadata to carry the decision; this version of LiteLLM is not supported")


def _attempt_of(request: Request) -> dict[str, Any] | None:
    """The latest attempt of a request, or of the `kwargs` of its event."""
    params = request.get("litellm_params") or {}
    attempts = Attempts.of(request, params)
    # 1.108 sets another trace id beside the parameters
    return attempts and attempts.find(params.get("litellm_trace_id") or request.get("litellm_trace_id"))


def _id(deployment: Mapping[str, Any]) -> str:
    return str((deployment.get("model_info") or {}).get("id", ""))


def _is_of(attempt: Mapping[str, Any], request: Request) -> bool:
    """Whether an event is of this attempt, and not of an earlier one of the same request."""
    info = request.get("model_info") or (request.get("litellm_params") or {}).get("model_info") or {}
    # `model_id` is read from the metadata: of requests that share theirs, it may be that of another one
    called = info.get("id") or (request.get("standard_logging_object") or {}).get("model_id")
    return called is None or str(called) in attempt["deployments"]


# -- LiteLLM itself --------------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:

    class NextarmCallback(Hooks):
        """The callback, for `litellm.callbacks`."""

    callback: NextarmCallback


def _class() -> Any:
    try:
        from litellm.integrations.custom_logger import CustomLogger  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(f"nextarm.litellm needs LiteLLM: pip install litellm ({error})") from error
    about = {"__doc__": Hooks.__doc__, "__module__": __name__}
    return type("NextarmCallback", (Hooks, CustomLogger), about)


def __getattr__(name: str) -> Any:
    """`NextarmCallback`, and `callback`, an instance by the environment; both need LiteLLM, which is imported by now."""
    if name == "NextarmCallback":
        made = _class()
    elif name == "callback":
        made = sys.modules[__name__].NextarmCallback()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made


def __dir__() -> Iterable[str]:
    return [*globals(), "NextarmCallback", "callback"]
