"""Where a Redis store is: its URL, and connections to it.

    redis://[user:password@]host[:port][/db]         rediss://... the same over TLS
    unix://[user:password@]/path/of/socket[?db=n]
    redis+sentinel://[user:password@]host[:port],host.../service[/db]       rediss+sentinel://...
    redis+cluster://[user:password@]host[:port],host...                     rediss+cluster://...

TLS takes `?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE&ssl_check_hostname=false&ssl_cert_reqs=none`. A password
is in the URL's first part or in a setting of its own, nowhere else, so that what follows the `@` can be shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

Endpoint = tuple[str, int]

PORT, SENTINEL_PORT = 6379, 26379
TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
KINDS = {
    "redis": "single",
    "rediss": "single",
    "unix": "unix",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """A URL in parts. Its text, its repr and what `redacted` returns hold no password."""

    kind: str
    endpoints: tuple[Endpoint, ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        where = self.path or ",".join(shown(endpoint) for endpoint in self.endpoints)
        return f"Redis ({self.kind} {where})" if self.kind in ("sentinel", "cluster") else f"Redis ({where})"

    def redacted(self, text: str) -> str:
        """The text without passwords: a server that does not know AUTH repeats its arguments."""
        for secret in (self.password, self.sentinel_password):
            if secret:
                text = text.replace(secret, "***")
        return text

    def connection(self, endpoint: Endpoint, *, timeout_s: float) -> Any:
        """A connection that is not open yet. (redis-py's connections are not typed.)"""
        common: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "protocol": 2,  # everything here is arrays of bytes; the newer protocol costs a longer handshake and brings nothing
            "socket_connect_timeout": timeout_s,
            "socket_timeout": None,  # the caller sets one limit for the whole exchange
        }
        if self.kind == "unix":
            return UnixDomainSocketConnection(path=self.path, **common)
        return self._over_tcp(endpoint, **common)

    def sentinel(self, endpoint: Endpoint, *, timeout_s: float) -> Any:
        """A connection to a sentinel, which has a password of its own, if any."""
        return self._over_tcp(
            endpoint, protocol=2, password=self.sentinel_password, socket_connect_timeout=timeout_s, socket_timeout=None
        )

    def _over_tcp(self, endpoint: Endpoint, **options: Any) -> Any:
        host, port = endpoint
        if self.tls:
            return SSLConnection(host=host, port=port, socket_keepalive=True, **self.options, **options)
        return Connection(host=host, port=port, socket_keepalive=True, **options)


def shown(endpoint: Endpoint) -> str:
    """host:port, for people."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(url: str, *, password: str = "", sentinel_password: str = "") -> Address:
    """The address that a URL names; `ValueError`, without any part that may hold a password, where it names none."""
    parts = urlsplit(url)
    kind = KINDS.get(parts.scheme)
    if kind is None:
        raise ValueError(f"{parts.scheme!r} is none of {', '.join(f'{scheme}://' for scheme in KINDS)}")
    tls = parts.scheme.startswith("rediss")
    user_part, _, place = parts.netloc.rpartition("@")
    username, _, url_password = user_part.partition(":")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    service = ""
    if kind == "sentinel":
        service, _, path = path.lstrip("/").partition("/")
        if not service:
            raise ValueError("the URL of sentinels ends in the name of the service they watch: redis+sentinel://host/service")
    return Address(
        kind=kind,
        endpoints=() if kind == "unix" else _endpoints(place, SENTINEL_PORT if kind == "sentinel" else PORT),
        path=path if kind == "unix" else "",
        service=service,
        db=_number(query.pop("db", "0") if kind == "unix" else path.strip("/"), kind),
        tls=tls,
        options=_tls_options(query, tls=tls),
        username=unquote(username) or None,
        password=unquote(url_password) or password or None,
        sentinel_password=sentinel_password or None,
    )


def _endpoints(place: str, port: int) -> tuple[Endpoint, ...]:
    found = []
    for item in place.split(",") if place else ["localhost"]:
        try:
            one = urlsplit(f"//{item}")
            found.append((one.hostname or "localhost", port if one.port is None else one.port))
        except ValueError as error:
            raise ValueError("hosts are HOST or HOST:PORT, separated by commas") from error
    return tuple(found)


def _number(text: str, kind: str) -> int:
    if text and (kind == "cluster" or not text.isdecimal()):
        raise ValueError("what follows the host is the number of a database, and a cluster has but one")
    return int(text or 0)


def _tls_options(query: dict[str, str], *, tls: bool) -> dict[str, Any]:
    unknown = sorted(set(query) - set(TLS_OPTIONS if tls else ()))
    if unknown:
        raise ValueError(f"the URL has parameters that are not known here: {', '.join(unknown)}")
    options: dict[str, Any] = dict(query)
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "false", "no")
    return options
