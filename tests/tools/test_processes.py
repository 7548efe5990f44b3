"""Commands that listen on a loopback port for as long as a block."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tools import processes

PROGRAM = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True: server.accept()
"""


def test_a_command_that_listens_ends_with_its_block(tmp_path: Path) -> None:
    port = processes.free_port()
    with processes.running([sys.executable, "-c", PROGRAM, str(port)], port=port, folder=tmp_path) as pid:
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_that_ends_by_itself_is_reported_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); raise SystemExit('no such option')"]
    with (
        pytest.raises(processes.ServerFailed, match="no such option"),
        processes.running(command, port=processes.free_port(), folder=tmp_path),
    ):
        pass
