"""`nextarm serve`: refuses unsafe settings, opens the store, serves until a signal, closes cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from service.api.app import running
from service.api.auth import parse_keys
from service.api.connections import BoundedProtocol, ConnectionLimits, available_connections
from service.api.dependencies import Services
from service.api.event_streams import EventStreams
from service.cli.logging_config import configure_logging
from service.engine.memory import share_heap
from service.settings import InvalidSettings, Settings, listed

logger = logging.getLogger("nextarm")

GRACE_S = 10
CANCEL_S = 2.0
"""For requests that were not answered in `GRACE_S` to close what they had opened."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """`InvalidSettings` if a server without keys could be reached from other machines."""
    if parse_keys(settings.api_keys) or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise InvalidSettings(
        f"NEXTARM_HOST: {settings.host} can be reached from other machines and there are no API keys; "
        "set NEXTARM_API_KEYS, or NEXTARM_ALLOW_ANONYMOUS=1 if something else keeps strangers out"
    )


class CannotListen(Exception):
    """The address is taken, or is none of this machine's; the message names it."""


KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s): who closes first must not be the side that may be sent a request."""


class _Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and which leaves the store to be closed: uvicorn's own would
    raise the signal again after its last request, and the process would end without a snapshot.
    """

    def __init__(self, config: uvicorn.Config, *, streams: EventStreams, url: str, store: str) -> None:
        super().__init__(config)
        self._streams = streams
        self._serving = {"url": url, "docs": f"{url}/docs", "store": store}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        gc.freeze()  # libraries and loaded bandits stay: a full collection in the middle of a request need not look at them
        logger.info("serving", extra=self._serving)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Other requests are waited for; a stream would not end."""
        self._streams.close()
        await super().shutdown(sockets=sockets)
        if tasks := set(self.server_state.tasks):  # cancelled by now: what they still log is logged before the store is closed
            await asyncio.wait(tasks, timeout=CANCEL_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, former in before.items():
                signal.signal(number, former)


def _listen(settings: Settings) -> tuple[socket.socket, str]:
    """A bound socket and its URL."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise CannotListen(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    return listening, f"http://{host}:{listening.getsockname()[1]}"


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, then close cleanly. Raises `InvalidSettings`, a `StorageError` or `CannotListen` before it
    answers anything.
    """
    share_heap()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


async def serve(settings: Settings) -> None:
    """See `run`."""
    check_exposure(settings)
    configure_logging(settings.log_level)
    if settings.redis_keep_events:
        logger.warning("NEXTARM_REDIS_KEEP_EVENTS: set NEXTARM_KEEP_EVENTS and NEXTARM_ARCHIVE instead; the old name will go")
    async with running(settings) as app:
        listening, url = _listen(settings)
        with listening:
            services: Services = app.state.services
            limits = ConnectionLimits(
                settings,
                connections=available_connections(settings.max_connections),
                meter=services.meter,
                room=services.request_room,
            )
            config = uvicorn.Config(
                app,
                http=partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=listed(settings.trusted_proxies),  # never uvicorn's own variable of the environment
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
            store = settings.store.split("@")[-1]
            await _Server(config, streams=services.event_streams, url=url, store=store).serve(sockets=[listening])
    logger.info("stopped")
