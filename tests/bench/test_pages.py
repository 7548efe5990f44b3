"""Where the tables of the benches go: between the markers of a page, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.pages import markdown, write, written

PAGE = "a\n<!-- measured x -->\nold\n<!-- /measured x -->\nb\n<!-- y -->\nstays\n<!-- /y -->\n"


def test_a_page_keeps_what_stands_outside_the_markers_and_other_tables() -> None:
    assert written(PAGE, {"measured x": "new \\1 text\n"}) == PAGE.replace("old", "new \\1 text")
    assert written("<!-- y -->\n<!-- /y -->", {"y": "first"}) == "<!-- y -->\nfirst\n<!-- /y -->"


def test_a_table_has_a_cell_for_every_column() -> None:
    text = markdown(["", "n"], [["a", "1"], ["b", ""]], right=["n"])
    assert text == "|  | n |\n| --- | ---: |\n| a | 1 |\n| b |  |"


def test_the_page_with_the_markers_is_found_and_a_text_without_a_place_refused(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("nothing")
    (tmp_path / "two.md").write_text(PAGE)
    write({"y": "changed"}, tmp_path)
    assert (tmp_path / "two.md").read_text() == PAGE.replace("stays", "changed")
    with pytest.raises(SystemExit, match="a place for z"):
        write({"y": "again", "z": "text"}, tmp_path)
    assert "again" not in (tmp_path / "two.md").read_text()
