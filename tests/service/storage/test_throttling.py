"""Failures that come by the thousand are a few lines of the log."""

from __future__ import annotations

import logging

import pytest

from service.storage.throttling import ThrottledLogger


def test_a_message_is_written_once_in_ten_seconds_with_the_number_of_those_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    throttled = ThrottledLogger(logging.getLogger("nextarm.test"), clock=lambda: now)
    for number in range(512):
        throttled.error("the store refused", reason=f"reason {number}")
    throttled.warning("another message")
    now = 109.9
    throttled.error("the store refused", reason="still")
    now = 110.0
    throttled.error("the store refused", reason="again")
    now = 120.0
    throttled.error("the store refused", reason="later")
    logged = [(r.levelname, r.message, getattr(r, "reason", ""), getattr(r, "suppressed", None)) for r in caplog.records]
    assert logged == [
        ("ERROR", "the store refused", "reason 0", None),
        ("WARNING", "another message", "", None),
        ("ERROR", "the store refused", "again", 512),
        ("ERROR", "the store refused", "later", None),
    ]
