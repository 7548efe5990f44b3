"""Settings from the environment, prefix `NEXTARM_`; each has one line of meaning, which the documentation repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.storage.base import Durability, Storage


class InvalidSettings(Exception):
    """A setting is wrong; the message names the variable and the fix."""


class Settings(BaseSettings):
    """Everything that an operator can set."""

    model_config = SettingsConfigDict(env_prefix="NEXTARM_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 = any free one.")
    store: str = Field("sqlite:///./data/nextarm.db", description="`sqlite:///PATH` or `memory://`.")
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
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body; more is a 413.")
    max_prompt_chars: int = Field(100_000, ge=1, description="Longest prompt or output text; more is a 422.")
    rate_limit: FiniteFloat = Field(0.0, ge=0, description="Requests per second and key (or address); more is a 429. 0: any.")
    max_state_bytes: int = Field(
        4 * 2**30, ge=2**20, description="Largest bandit that can be created, in memory with what is derived; more is a 422."
    )
    max_open: int = Field(100_000, ge=1, description="Open decisions per bandit; more is a 429 until outcomes come or time out.")
    default_timeout_s: FiniteFloat = Field(
        86_400.0, gt=0, le=1e9, description="Seconds after which an open decision expires where the bandit names no `timeout_s`."
    )
    sweep_s: FiniteFloat = Field(0.5, gt=0, description="How often overdue decisions are looked for, seconds.")
    snapshot_every: int = Field(10_000, ge=1, description="Events between two snapshots of a bandit.")
    embedding_cache: int = Field(50_000, ge=0, description="Embeddings kept in memory, of all embedders together.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line that is written.")

    @staticmethod
    def load(**overrides: object) -> Settings:
        """From the environment; `InvalidSettings` names every variable that is wrong."""
        try:
            return Settings(**overrides)  # type: ignore[arg-type]
        except ValidationError as error:
            lines = [f"NEXTARM_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
            raise InvalidSettings("; ".join(lines)) from error

    def open_storage(self) -> Storage:
        """The storage that `store` names, not started yet."""
        from service.storage.memory import MemoryStorage
        from service.storage.sqlite import SqliteStorage

        if self.store == "memory://":
            return MemoryStorage()
        return SqliteStorage(self.sqlite_path(), durability=Durability(self.durability))

    def sqlite_path(self) -> Path:
        """The file of an SQLite store; `InvalidSettings` for any other."""
        prefix = "sqlite:///"
        if not self.store.startswith(prefix) or not self.store[len(prefix) :]:
            scheme = self.store.partition("://")[0]  # what follows may hold a password
            raise InvalidSettings(f"NEXTARM_STORE: {scheme!r} is none of sqlite:///PATH, memory://")
        return Path(self.store[len(prefix) :])
