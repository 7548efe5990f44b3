"""The count of the files that a request passes: each stay once, coming back counted, and both hot requests really answered."""

from __future__ import annotations

import sys

import pytest

from tools.request_path import RequestPath, main

CALLS = [("service/a.py", "f"), ("service/a.py", "g"), ("bandits/b.py", "h"), ("service/a.py", "f"), ("service/c.py", "i")]


def test_a_file_counts_once_and_coming_back_to_it_is_a_return() -> None:
    path = RequestPath(CALLS)
    assert path.stays == ["service/a.py", "bandits/b.py", "service/a.py", "service/c.py"]
    assert (path.files, path.returns) == (3, 1)


def test_a_folder_alone_is_counted_as_if_there_were_no_other() -> None:
    path = RequestPath(CALLS).within("service/")
    assert (path.files, path.returns) == (2, 0)


def test_a_decision_and_an_outcome_are_followed_from_the_entrance_to_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--verbose"])
    printed = capsys.readouterr().out
    assert sys.getprofile() is None
    decision, outcome = printed.split("\noutcome: ")
    assert decision.startswith("decision: ")
    for part in (decision, outcome):
        assert "service/api/app.py" in part
        assert "service/engine/commit.py" in part
    assert "bandits/draw.py  draw" in decision
    assert "bandits/draw.py" not in outcome
