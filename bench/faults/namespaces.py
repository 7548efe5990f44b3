"""A network namespace of the bench's own, in which one replica lives: two links to it, of which one can be taken down.

    clients ── link a (stays up) ── [namespace: the service] ── link b (cut, mended) ── Redis

The addresses are private ones of links that exist for this run alone. It takes root; `Unsupported` where it cannot be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Unsupported(Exception):
    """A network namespace cannot be had here."""


@dataclass(frozen=True)
class Namespace:
    """host: where the service in it listens.  store_host: where Redis listens for it.  within: the command that enters it."""

    name: str
    host: str
    store_host: str
    within: tuple[str, ...]
    link: str

    def cut(self) -> None:
        """Redis and the namespace lose each other's packets."""
        _run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """They reach each other again."""
        _run("ip", "link", "set", self.link, "up")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise Unsupported(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """It ends with its block, and its links with it."""
    if os.geteuid() or not shutil.which("ip"):
        raise Unsupported("it takes root and the command ip")
    number = os.getpid() % 250
    name, links = f"nextarm-{os.getpid()}", [f"nxa{os.getpid()}", f"nxb{os.getpid()}"]
    subnets = [f"10.213.{number}", f"10.214.{number}"]
    _run("ip", "netns", "add", name)
    try:
        for link, subnet in zip(links, subnets, strict=True):
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "in" + link, "netns", name)
            _run("ip", "address", "add", f"{subnet}.1/30", "dev", link)
            _run("ip", "-n", name, "address", "add", f"{subnet}.2/30", "dev", "in" + link)
            _run("ip", "link", "set", link, "up")
            _run("ip", "-n", name, "link", "set", "in" + link, "up")
        yield Namespace(name, f"{subnets[0]}.2", f"{subnets[1]}.1", ("ip", "netns", "exec", name), links[1])
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        for link in links:  # they go with their other ends, a moment later
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
