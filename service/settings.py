"""Settings from the environment, prefix `NEXTARM_`; each has one line of description, which the documentation repeats."""

from __future__ import annotations

import functools
import ipaddress
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service import install_hint
from service.storage.base import Durability, Storage, StorageUnavailableError

if TYPE_CHECKING:
    from service.embedders.base import Sources
    from service.embedders.images import Limits
    from service.storage.archive import Archive


PREFIX = "NEXTARM_"
OF_OTHERS = (
    "NEXTARM_API_KEY",
    "NEXTARM_BANDIT",
    "NEXTARM_MEMORY",
    "NEXTARM_METRICS_KEY",
    "NEXTARM_PUBLISHED_PORT",
    "NEXTARM_REPLICAS",
    "NEXTARM_URL",
)
"""Variables with the prefix that are no settings of the service: of `nextarm replay`, the Python client and the compose files."""

REDIS = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")


def listed(text: str) -> list[str]:
    """The items of a setting that is a list with commas."""
    return [item for item in (part.strip() for part in text.split(",")) if item]


class InvalidSettings(Exception):
    """A setting is wrong; the message names the variable and the fix."""


class Settings(BaseSettings):
    """Everything that an operator can set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    store: str = Field(
        "sqlite:///./data/nextarm.db",
        repr=False,  # it may hold a password
        description="`sqlite:///PATH`, `memory://`, or Redis: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` (TLS), "
        "`unix:///SOCKET`, `redis+sentinel://HOST,HOST/SERVICE`, `redis+cluster://HOST,HOST`.",
    )
    durability: Literal["power", "process"] = Field(
        "power", description="What an acknowledged outcome survives: loss of power, or only the end of the process."
    )
    api_keys: str = Field(
        "",
        repr=False,
        description="Comma-separated keys, each `KEY`, `ROLE:KEY` or `ROLE@TENANT:KEY`; ROLE is `admin`, `router` or `reader`; "
        "KEY has no colon and may be `sha256=HEX`. Empty = no authentication.",
    )
    allow_anonymous: bool = Field(False, description="Allow listening beyond loopback without any API key.")
    allowed_hosts: str = Field(
        "",
        description="Comma-separated names, besides loopback's, by which requests may address this server (their Host header); "
        "others are a 421. `*` = any. Empty = loopback's alone on a server on loopback without keys, else any.",
    )
    trusted_proxies: str = Field(
        "",
        description="Comma-separated addresses or networks of proxies whose `X-Forwarded-For` names the client, for the rate "
        "limit; `*` = any. Empty = the header is not read.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        description="Connections at once, or fewer where the limit of file descriptors is lower. Beyond, those that wait longest "
        "for a request are closed, and only probes and metrics are answered besides.",
    )
    head_timeout_s: FiniteFloat = Field(
        10.0, gt=0, description="Seconds from the first byte of a request to the end of its headers; more is a 408."
    )
    body_timeout_s: FiniteFloat = Field(
        60.0, gt=0, description="Seconds from the end of a request's headers to the end of its body; more is a 408."
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body; more is a 413.")
    max_bodies_bytes: int = Field(
        0,
        ge=0,
        description="Request bodies in memory, all together, in bytes; more are a 503 with Retry-After. "
        "0: eight times `NEXTARM_MAX_BODY_BYTES`.",
    )
    max_prompt_chars: int = Field(100_000, ge=1, description="Longest prompt or output text; more is a 422.")
    max_concurrent: int = Field(
        100,
        ge=1,
        description="Requests worked on at once; more are a 503 with Retry-After, so that those accepted stay quick. What one "
        "core keeps up with; more where requests wait for a scorer.",
    )
    rate_limit: FiniteFloat = Field(0.0, ge=0, description="Requests per second and key (or address); more is a 429. 0: any.")
    max_state_bytes: int = Field(
        4 * 2**30, ge=2**20, description="Largest bandit that can be created, in memory with what is derived; more is a 422."
    )
    max_open: int = Field(100_000, ge=1, description="Open decisions per bandit; more is a 429 until outcomes come or time out.")
    default_timeout_s: FiniteFloat = Field(
        86_400.0, gt=0, le=1e9, description="Seconds after which an open decision expires where the bandit names no `timeout_s`."
    )
    min_offset_wait_s: FiniteFloat = Field(
        2.0, gt=0, le=60, description="Longest wait for an offset that a request asks for, seconds; then it is a 503."
    )
    sweep_s: FiniteFloat = Field(0.5, gt=0, description="How often overdue decisions are looked for, seconds.")
    snapshot_every: int = Field(10_000, ge=1, description="Events between two snapshots of a bandit.")
    idle_s: FiniteFloat = Field(
        3600.0,
        ge=0,
        description="Seconds without a request after which a bandit leaves memory, with a snapshot; the next request loads it. "
        "0 = never.",
    )
    memory_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that loaded bandits may take, as estimated; beyond, those that were not asked for longest leave "
        "memory. One that is larger is served all the same, and `notices` of readyz say so. 0 = no limit.",
    )
    embedding_cache: int = Field(50_000, ge=0, description="Embeddings kept in memory, of all embedders together.")
    embedding_waiting: int = Field(
        1_024, ge=1, description="Texts and images that may wait for one embedder; more is a 503 with Retry-After."
    )
    open_clip: str = Field(
        "",
        description="`MODEL` or `MODEL:CHECKPOINT` of the embedder `open-clip` where a bandit names no model; empty = it must.",
    )
    models: str = Field(
        "",
        description="Folder of checkpoints that bandits may name: files of open_clip, or folders as `service/embedders/shapes`.",
    )
    allow_downloads: bool = Field(
        False, description="Let pretrained tags be downloaded when a bandit is created or a model is warmed; never in between."
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda|cuda:[0-9]+|auto)$",
        description="`cpu`, `cuda`, `cuda:N` or `auto` (the first GPU if there is one): where embedders compute, and where "
        "`pak-ucb` and `lin-ucb` score if a rule that is measured at first use finds it quicker.",
    )
    warm: str = Field(
        "", description="Comma-separated embedders to load at the start, in the background, e.g. `minilm,open-clip`."
    )
    max_image_bytes: int = Field(10_000_000, ge=1, description="Largest image file; more is a 422.")
    max_image_pixels: int = Field(
        16_000_000, ge=1, description="Largest width times height of an image, read from its header; more is a 422."
    )
    scorer_timeout_s: FiniteFloat = Field(30.0, gt=0, description="Seconds in which a scorer must have judged an outcome.")
    upstreams: str = Field(
        "",
        description="TOML file of upstreams: turns on the routes for OpenAI's clients (docs/openai.md). Empty = there are none.",
    )
    redis_password: str = Field("", repr=False, description="Password of Redis, where the URL of the store has none.")
    redis_sentinel_password: str = Field("", repr=False, description="Password of the sentinels, if they have one.")
    redis_prefix: str = Field(
        "nextarm", pattern=r"^[A-Za-z0-9._:-]{1,64}$", description="What every key in Redis begins with: one per service."
    )
    redis_timeout_s: FiniteFloat = Field(
        2.0,
        gt=0,
        le=60,
        description="Longest exchange with Redis, seconds; then a request is a 503 and the connection is replaced.",
    )
    redis_wait: int = Field(
        0, ge=0, le=16, description="Replicas of Redis that must have an event before it is acknowledged (WAIT); fewer are a 503."
    )
    redis_keep_events: int = Field(
        0,
        ge=0,
        description="Former name of `NEXTARM_KEEP_EVENTS`, for Redis; without `NEXTARM_ARCHIVE` events are dropped for good.",
    )
    keep_events: int = Field(
        0,
        ge=0,
        description="0 = keep every event. Else events before the older of a bandit's two snapshots move from the store to "
        "`NEXTARM_ARCHIVE`, except for the last so many and what can still be amended.",
    )
    archive: str = Field(
        "",
        validate_default=True,
        description="Folder that events are archived in before they are trimmed from the store, and read from later; it must be "
        "there. `none` = they are dropped for good.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line that is written.")

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for item in listed(text):
            if item != "*":
                try:
                    ipaddress.ip_network(item)
                except ValueError as error:
                    raise ValueError(f"{item!r} is no address and no network: {error}") from error
        return text

    @field_validator("archive")
    @classmethod
    def _is_named_where_events_are_trimmed(cls, text: str, info: ValidationInfo) -> str:
        if not text and info.data.get("keep_events"):
            raise ValueError(
                "NEXTARM_KEEP_EVENTS trims events; name the folder that they are archived in, or `none` to drop them for good"
            )
        return text

    @field_validator("max_bodies_bytes")
    @classmethod
    def _holds_one_body(cls, value: int, info: ValidationInfo) -> int:
        if 0 < value < info.data.get("max_body_bytes", 0):
            raise ValueError("is less than NEXTARM_MAX_BODY_BYTES: no body of that size could ever be read")
        return value

    @staticmethod
    def load(**overrides: object) -> Settings:
        """From the environment; `InvalidSettings` names every variable that is wrong or unknown."""
        _refuse_unknown()
        try:
            return Settings(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            lines = [f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
            raise InvalidSettings("; ".join(lines)) from error

    def sources(self) -> Sources:
        """Where embedders find their weights, and which ones the operator allows."""
        from service.embedders.base import Sources

        return Sources(
            models=Path(self.models) if self.models else None,
            open_clip=self.open_clip,
            allow_downloads=self.allow_downloads,
            device=self.where(),
        )

    def where(self) -> str:
        """The device that is meant: cpu, or a GPU that is there. `InvalidSettings` where it is not."""
        return _where(self.device)

    def image_limits(self) -> Limits:
        """Of one image."""
        from service.embedders.images import Limits

        return Limits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    @property
    def kept_events(self) -> int:
        """Events of each bandit that stay in the store at least; 0 = all do."""
        return self.keep_events or (self.redis_keep_events if self.scheme in REDIS else 0)

    def open_archive(self) -> Archive | None:
        """Where trimmed events are, if anywhere."""
        from service.storage.archive import Archive

        return None if self.archive in ("", "none") else Archive(Path(self.archive))

    def open_storage(self) -> Storage:
        """The storage that `store` names, not started yet."""
        from service.storage.memory import MemoryStorage
        from service.storage.sqlite.store import SqliteStorage

        if self.store == "memory://":
            return MemoryStorage(archive=self.open_archive())
        if self.scheme in REDIS:
            return self._open_redis()
        return SqliteStorage(self.sqlite_path(), durability=Durability(self.durability), archive=self.open_archive())

    def open_storage_to_read(self) -> Storage:
        """The store for reading beside the process that serves it, not started yet; `StorageUnavailableError` if missing."""
        from service.storage.sqlite.store import SqliteStorage

        if self.scheme in REDIS:
            return self._open_redis()
        return SqliteStorage(self.present_sqlite_path(), read_only=True, archive=self.open_archive())

    def present_sqlite_path(self) -> Path:
        """Where the SQLite file is; `StorageUnavailableError` if it is missing."""
        path = self.sqlite_path()
        if not path.is_file():
            raise StorageUnavailableError(
                f"{path}: there is no such store; run this where the service runs, or name its store in NEXTARM_STORE"
            )
        return path

    def _open_redis(self) -> Storage:
        try:
            from service.storage.redis.address import parse
            from service.storage.redis.store import RedisStorage
        except ImportError as error:
            raise InvalidSettings(f"NEXTARM_STORE: {self.scheme}:// needs: {install_hint('redis')}") from error
        try:
            address = parse(self.store, password=self.redis_password, sentinel_password=self.redis_sentinel_password)
        except ValueError as error:
            raise InvalidSettings(f"NEXTARM_STORE: {error}") from error
        return RedisStorage(
            address,
            prefix=self.redis_prefix,
            confirmations=self.redis_wait,
            timeout_s=self.redis_timeout_s,
            durability=Durability(self.durability),
            archive=self.open_archive(),
        )

    @property
    def scheme(self) -> str:
        """How the store's URL begins; what follows may hold a password."""
        return self.store.partition("://")[0]

    def sqlite_path(self) -> Path:
        """The file of an SQLite store; `InvalidSettings` for any other."""
        prefix = "sqlite:///"
        if not self.store.startswith(prefix) or not self.store[len(prefix) :]:
            if self.scheme in REDIS:
                raise InvalidSettings(f"NEXTARM_STORE: {self.scheme}:// is no SQLite store")
            raise InvalidSettings(f"NEXTARM_STORE: {self.scheme!r} is none of sqlite:///PATH, memory://, redis://HOST")
        return Path(self.store[len(prefix) :])


def _refuse_unknown() -> None:
    """A misspelt name would leave its default in force, which for the keys means that none are asked for."""
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for variable in sorted(os.environ):
        prefix, name = variable[: len(PREFIX)].upper(), variable[len(PREFIX) :].upper()
        if prefix != PREFIX or name in known or prefix + name in OF_OTHERS:
            continue
        near = get_close_matches(name, known, n=1)
        fix = f"did you mean {PREFIX}{near[0]}?" if near else "remove it, or see docs/settings.md"
        lines.append(f"{variable}: is no setting; {fix}")
    if lines:
        raise InvalidSettings("; ".join(lines))


@functools.cache
def _where(name: str) -> str:
    """Asked with every request that names an embedder; a GPU is tried once."""
    if name == "cpu":
        return name
    from bandits.gpu import cost_model as devices

    try:
        return str(devices.device(name))
    except devices.InvalidDevice as error:
        raise InvalidSettings(str(error)) from error
