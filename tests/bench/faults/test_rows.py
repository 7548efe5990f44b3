"""The fault table: what is counted as a loss, what breaks a promise, and how rows get into a document and stay there."""

from __future__ import annotations

from pathlib import Path

from bench.faults.cases import CASES, ORDER
from bench.faults.clients import Record
from bench.faults.replicas import Judged
from bench.faults.rows import Row, judged_row, shown, write
from bench.faults.verdict import Verdict

KEY = ("chance", "d1")
START, END = "<!-- faults -->", "<!-- /faults -->"


def judged(*, lost: tuple[str, ...] = (), twice: tuple[str, ...] = (), differing: tuple[str, ...] = ()) -> Judged:
    same = {"chance": (7, "x")}
    verdict = Verdict(lost=list(lost), twice=list(twice), differing=list(differing))
    return Judged(verdict=verdict, digests={"one": same, "two": same, "three": {"chance": (7, "y")}})


def test_a_loss_breaks_a_promise_only_where_one_was_given() -> None:
    record = Record(decided={KEY: (2, "b")}, observed={KEY: 3}, broken=["outcome: first offset 3, now 2"])
    lost = judged(lost=("outcome at 3",))
    promised = judged_row("f", record, lost, seen="")
    assert (promised.acknowledged, promised.lost, promised.digests, promised.promise) == (2, 1, "2 of 3", "BROKEN")
    assert promised.broken == ["lost: outcome at 3", "outcome: first offset 3, now 2"]
    counted = judged_row("f", record, lost, seen="", may_lose=True)
    assert (counted.lost, counted.promise) == (1, "none; counted")


def test_what_no_loss_excuses_is_broken_all_the_same() -> None:
    for found in (judged(lost=("the offsets have a gap",)), judged(twice=("d1 at 2 and 3",)), judged(differing=("x and y",))):
        assert judged_row("f", Record(), found, seen="", may_lose=True).promise == "BROKEN"
    hanging = Record()
    hanging.counts["never answered"] = 2
    assert judged_row("f", hanging, judged(), seen="", may_lose=True).broken == ["2 requests were never answered"]
    assert judged_row("f", Record(), judged(), seen="").promise == "kept"


def test_rows_are_replaced_by_their_fault_and_others_stay_in_order(tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    document.write_text(f"# Before\n\n{START}\n{END}\n\nAfter.\n")
    order = ("first", "second", "third")
    write(document, [Row(fault="third, a | b", acknowledged=12_345, seen="x"), Row(fault="first", run="--only one")], order)
    write(document, [Row(fault="second"), Row(fault="first", lost=0, run="--only one --seed 2")], order)
    text = document.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith(f"{END}\n\nAfter.\n")
    table = text.partition(START)[2].partition(END)[0].strip().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| first", "| second", "| third, a / b"]
    assert "--seed 2" in table[2]
    assert "12,345" in table[4]
    assert {line.count(" |") for line in table} == {table[0].count(" |")}


def test_a_terminal_shows_every_row() -> None:
    assert shown([Row(fault="a"), Row(fault="b", broken=["x"])]).row_count == 2


def test_every_case_has_a_name_of_its_own_and_a_place_in_the_table() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 16
    assert len(set(ORDER)) == len(ORDER)
