"""The file of upstreams: which arm is called where, with which key and model, what it costs, and what is learned of its calls.

TOML, read once at the start. Keys stand in the environment; the file names the variables.
"""

from __future__ import annotations

import os
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PrivateAttr, StringConstraints, ValidationError, field_validator

from service.api.requests import ArmName, Reward
from service.settings import PREFIX, InvalidSettings

VARIABLE = f"{PREFIX}UPSTREAMS"
LISTED = 10
"""Wrong entries that one message lists."""

Price = Annotated[FiniteFloat, Field(ge=0, le=1e6)]
Signal = Literal["latency_s", "first_token_s", "prompt_tokens", "completion_tokens"]


class Entry(BaseModel):
    """A table of the file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Prices(Entry):
    """What a call costs, in the unit of the bandit's prices. input, output, cached: per token; cached: of the prompt, as `input`
    where it is missing.  image: per picture.  call: per call.
    """

    input: Price | None = None
    output: Price | None = None
    cached: Price | None = None
    image: Price | None = None
    call: Price | None = None


class Upstream(Entry):
    """Where an arm is called."""

    base_url: str
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    timeout_s: Annotated[FiniteFloat, Field(gt=0, le=3600)] = 120.0
    stream_usage: bool = True
    prices: Prices = Prices()
    tenants: list[str] | None = None
    _key: str = PrivateAttr("")

    @field_validator("base_url")
    @classmethod
    def _is_base_url(cls, text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError('is no URL; write e.g. "https://api.openai.com/v1"')
        if parts.username or parts.password:
            raise ValueError("holds a user or a password; name the variable of a key in key_env")
        if parts.query or parts.fragment:
            raise ValueError("has a query or a fragment; leave it out")
        return text.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _is_not_ours(cls, name: str | None) -> str | None:
        if name is not None and name.upper().startswith(PREFIX):
            raise ValueError(f"begins with {PREFIX}, as the settings of this server do, which no upstream may see; rename it")
        return name

    @property
    def key(self) -> str:
        """The value of the variable that `key_env` names; filled in by `load`."""
        return self._key

    def serves(self, tenant: str) -> bool:
        """Whether keys of this tenant may call it."""
        return self.tenants is None or tenant in self.tenants


class Learned(Entry):
    """What is learned of a call besides its cost and its failure. reward: of every complete answer; None = it comes later, from a
    client.  signals: those that are reported.  output: whether the answer goes to the bandit's scorer or policy.
    """

    reward: Reward | None = None
    signals: list[Signal] = ["latency_s", "first_token_s", "prompt_tokens", "completion_tokens"]
    output: bool = True


class Upstreams(Entry):
    """The whole file. bandits: by name, `tenant/name` for those of a tenant; others learn as `outcome` says."""

    arms: Annotated[dict[ArmName, Upstream], Field(min_length=1)]
    outcome: Learned = Learned()
    bandits: dict[str, Learned] = {}
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    max_calls: Annotated[int, Field(ge=1, le=100_000)] = 256

    def learned(self, tenant: str, bandit: str) -> Learned:
        """What a bandit learns of its calls."""
        return self.bandits.get(f"{tenant}/{bandit}" if tenant else bandit, self.outcome)


def load(path: Path) -> Upstreams:
    """The file with its keys filled in; `InvalidSettings` names the file, every wrong entry, and the fix."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{VARIABLE}: {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise InvalidSettings(f"{VARIABLE}: {path}: is not TOML: {error}") from error
    try:
        found = Upstreams.model_validate(content)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'the file'}: {_message(item)}" for item in error.errors()[:LISTED]]
        raise InvalidSettings(f"{VARIABLE}: {path}: {'; '.join(wrong)}") from error
    for name, arm in found.arms.items():
        arm._key = _key(arm.key_env, name, path)
    return found


def _key(variable: str | None, arm: str, path: Path) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    where = f"{VARIABLE}: {path}: arms.{arm}.key_env: the variable {variable}"
    if not key:
        raise InvalidSettings(f"{where} is not set; set it, or leave key_env out for an upstream without keys")
    if not (key.isascii() and key.isprintable()):
        raise InvalidSettings(f"{where} holds characters that no header can carry; set it to the key alone")
    return key


_PLACES: dict[str, type[Entry]] = {"arms": Upstream, "outcome": Learned, "bandits": Learned, "prices": Prices}
"""By name of a table: what its entries are."""


def _message(item: Any) -> str:
    """In words that name the fix where pydantic's do not."""
    match item["type"]:
        case "extra_forbidden":
            tables = [part for part in item["loc"][:-1] if part in _PLACES]
            known = list((_PLACES[tables[-1]] if tables else Upstreams).model_fields)
            near = get_close_matches(str(item["loc"][-1]), known, n=1)
            return f"is no key here; did you mean {near[0]}?" if near else f"is no key here; there are {', '.join(known)}"
        case "missing":
            return "is missing; add it" + (", a table per arm: [arms.NAME]" if item["loc"] == ("arms",) else "")
        case "value_error":
            return str(item["ctx"]["error"])
        case "string_pattern_mismatch":
            return "must be the name of an environment variable, such as OPENAI_API_KEY, not the key itself"
        case _:
            message: str = item["msg"]
            return message[0].lower() + message[1:]
