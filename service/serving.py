"""Run the server: refuse what is unsafe, open the store, serve until told to stop, close cleanly."""

from __future__ import annotations

import ipaddress
import logging
import socket

import uvicorn

from service.access import parse_keys
from service.app import running
from service.settings import InvalidSettings, Settings
from service.telemetry import configure_logging

logger = logging.getLogger("nextarm")

GRACE_S = 10


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """`InvalidSettings` where strangers could reach a server that asks nobody for a key."""
    if parse_keys(settings.api_keys) or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise InvalidSettings(
        f"NEXTARM_HOST: {settings.host} can be reached from other machines and there are no API keys; "
        "set NEXTARM_API_KEYS, or NEXTARM_ALLOW_ANONYMOUS=1 if something else keeps strangers out"
    )


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises `InvalidSettings` or a `StorageError` before the port is opened."""
    check_exposure(settings)
    configure_logging(settings.log_level)
    async with running(settings) as app:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http="httptools",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        listening = server.config.bind_socket() if settings.port == 0 else None
        address = f"http://{settings.host}:{listening.getsockname()[1] if listening else settings.port}"
        logger.info("serving", extra={"url": address, "docs": f"{address}/docs", "store": settings.store.split("@")[-1]})
        sockets: list[socket.socket] | None = [listening] if listening else None
        await server.serve(sockets=sockets)
