"""Authentication by API keys with roles and tenants, hashed and compared in constant time; rate limits by token buckets.

NEXTARM_API_KEYS = KEY | ROLE:KEY | ROLE@TENANT:KEY , ...        KEY has no colon; it may be sha256=HEX: no secret is set then

reader   reads                     router   also decides, observes, cancels, posts references        admin   everything

A key of a tenant sees the bandits of that tenant, any other key those that belong to none. An admin's key without a tenant is the
operator's: with the header `X-Nextarm-Tenant` one request of it is made as an admin of that tenant.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from service.api.problems import Problem, invalid
from service.settings import InvalidSettings

ROLES = ("reader", "router", "admin")
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
TENANT_HEADER = "X-Nextarm-Tenant"
_ITEM = re.compile(r"^(?:(?P<role>admin|router|reader)(?:@(?P<tenant>" + TENANT.pattern + r"))?:)?(?P<key>[^\s:]+)$")
BUCKETS = 10_000


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. role: one of `ROLES`. tenant: "" is the default one. name: what the rate limit counts by."""

    role: str
    tenant: str = ""
    name: str = ""


@dataclass(frozen=True)
class _Key:
    sha256: bytes
    caller: Caller


def parse_keys(text: str) -> list[_Key]:
    """The keys of the setting; `InvalidSettings` names the position of a bad one, never the key."""
    keys = []
    for position, item in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        match = _ITEM.match(item)
        if match is None:
            raise InvalidSettings(f"NEXTARM_API_KEYS: key {position} is not KEY, ROLE:KEY or ROLE@TENANT:KEY")
        secret = match["key"]
        if secret.startswith("sha256="):
            try:
                hashed = bytes.fromhex(secret[7:])
            except ValueError:
                hashed = b""
            if len(hashed) != 32:
                raise InvalidSettings(f"NEXTARM_API_KEYS: key {position} is not sha256= and 64 hexadecimal digits")
        else:
            hashed = hashlib.sha256(secret.encode()).digest()
        keys.append(_Key(hashed, Caller(match["role"] or "admin", match["tenant"] or "", f"key {position}")))
    return keys


class Authenticator:
    """Identifies the caller of a request by its key and applies the rate limit."""

    def __init__(self, *, keys: str, rate_limit: float) -> None:
        self._keys = parse_keys(keys)
        self._rate = rate_limit
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> (tokens, when)

    @property
    def is_open(self) -> bool:
        """Whether no key is required, so that every caller has every role."""
        return not self._keys

    def authenticate(self, *, authorization: str, address: str, tenant: str = "") -> Caller:
        """Who calls. authorization, tenant: the headers' values. Called before a byte of the body is read; wrong keys count by
        address.
        """
        caller = Caller("admin", "", address) if self.is_open else self._known(authorization)
        if self._rate:
            self._take(address if caller is None else caller.name)
        if caller is None:
            raise Problem(
                "unauthenticated",
                "send the header `authorization: Bearer KEY` with a key that this server knows",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return _within(caller, tenant)

    def _known(self, authorization: str) -> Caller | None:
        scheme, _, key = authorization.partition(" ")
        hashed = hashlib.sha256(key.strip().encode()).digest()
        found = None
        for known in self._keys:  # all of them, whichever matches
            if hmac.compare_digest(known.sha256, hashed):
                found = known.caller
        return found if scheme.lower() == "bearer" else None

    def _take(self, name: str) -> None:
        now = time.monotonic()
        burst = max(self._rate, 1.0)
        tokens, when = self._buckets.pop(name, (burst, now))
        tokens = min(burst, tokens + (now - when) * self._rate)
        self._buckets[name] = (max(tokens - 1.0, 0.0) if tokens >= 1.0 else tokens, now)
        while len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        if tokens < 1.0:
            wait = max(1, round((1.0 - tokens) / self._rate + 0.5))
            raise Problem("rate_limited", f"more than {self._rate:g} requests per second", headers={"Retry-After": str(wait)})


def _within(caller: Caller, tenant: str) -> Caller:
    """The caller at work for the tenant that the request names, if it names one."""
    if not tenant or tenant == caller.tenant:
        return caller
    if caller.tenant or caller.role != "admin":
        raise Problem("forbidden", f"the header {TENANT_HEADER} is for admin keys without a tenant")
    if not TENANT.fullmatch(tenant):
        raise invalid(TENANT_HEADER, f"must match {TENANT.pattern}, as tenants in NEXTARM_API_KEYS do")
    return replace(caller, tenant=tenant)


def check_role(caller: Caller, needs: str) -> None:
    """`forbidden` where the key is of a lesser role."""
    if ROLES.index(caller.role) < ROLES.index(needs):
        raise Problem("forbidden", f"this needs the role {needs}; the key has {caller.role}")
