"""Names by which this server may be addressed.

A web page whose name is made to point at this machine (DNS rebinding) is, to the browser, of the same origin as a server on
loopback, and could use one that asks for no key. Its name is in the Host header, which a page cannot change.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable

from service.api.problems import Problem

ANY = "*"
_HOST = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/\s]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class AllowedHosts:
    """Checks Host headers.

    Args:
        names: besides loopback's names; `*` = any.
        are_addresses_allowed: whether any address in figures will do. No name stands behind one, so that no page can claim it.
    """

    def __init__(self, names: Iterable[str], *, are_addresses_allowed: bool) -> None:
        self._names = frozenset(names)
        self._are_addresses_allowed = are_addresses_allowed
        self._is_allowed = functools.lru_cache(1024)(self._look_at)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A `Problem` where a Host header names another host. None at all passes: browsers always send one."""
        if ANY in self._names:
            return
        for name, value in headers:
            if name == b"host" and not self._is_allowed(value[:300]):
                raise Problem(
                    "host_not_allowed",
                    "the Host header names a host that this server does not answer for; address it as localhost, or list the "
                    "name in NEXTARM_ALLOWED_HOSTS",
                )

    def _look_at(self, value: bytes) -> bool:
        match = _HOST.fullmatch(value.decode("latin-1").strip())
        if match is None:
            return False
        host = (match["literal"] or match["name"]).lower().removesuffix(".")
        if host in self._names or host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return self._are_addresses_allowed or (mapped or address).is_loopback
