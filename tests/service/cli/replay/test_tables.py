import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli.replay.errors import BadInput
from service.cli.replay.layouts import Columns
from service.cli.replay.tables import Table, read_table

SCORES = {"p1": {"small": 0.25, "large": 1.0}, "p2": {"small": 0.5, "large": 0.75}, "p3": {"small": 0.0, "large": 0.125}}
COSTS = {"small": 0.01, "large": 0.04}
TEXTS = {"p1": "Say hello, please", "p2": 'Quote "this"\nover two lines', "p3": "Ünïcode ☃"}
REWARDS = np.array([[0.2, 0.8], [0.45, 0.55], [-0.05, -0.075]])  # score - 5 cost, by hand


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return write(path, text.getvalue())


def write(path: Path, text: str) -> Path:
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, "\n".join(json.dumps(row) for row in rows) + "\n")


def long_rows() -> list[dict[str, Any]]:
    return [
        {"task_id": p, "prompt": TEXTS[p], "model": arm, "score": score, "cost_usd": COSTS[arm], "kind": p[-1]}
        for p, scores in SCORES.items()
        for arm, score in scores.items()
    ]


def wide_rows() -> list[dict[str, Any]]:
    return [
        {"id": p, "prompt": TEXTS[p], "kind": p[-1], **scores, **{f"cost:{arm}": COSTS[arm] for arm in scores}}
        for p, scores in SCORES.items()
    ]


def nested_rows() -> list[dict[str, Any]]:
    return [{"id": p, "prompt": TEXTS[p], "kind": p[-1], "rewards": scores, "costs": COSTS} for p, scores in SCORES.items()]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "make", "rows"),
    [
        ("t.csv", write_csv, long_rows),
        ("t.jsonl", jsonl, long_rows),
        ("t.csv", write_csv, wide_rows),
        ("t.jsonl", jsonl, wide_rows),
        ("t.jsonl", jsonl, nested_rows),
    ],
)
def test_every_layout_and_format_gives_the_same_table(tmp_path: Path, name: str, end: str, make: Any, rows: Any) -> None:
    columns = Columns(group="kind")
    table = read_table(make(tmp_path / (name + end), rows()), reward="score - 5*cost", columns=columns)
    assert table.arms == ("small", "large")
    assert table.prompts == ("p1", "p2", "p3")
    np.testing.assert_allclose(table.rewards, REWARDS, atol=1e-15)
    np.testing.assert_allclose(table.costs, [[0.01, 0.04]] * 3)
    assert table.texts == tuple(TEXTS.values())
    assert table.groups == ("1", "2", "3")
    assert table.has_costs
    assert not table.has_expected


def test_a_vector_comes_from_a_column_or_from_a_category(tmp_path: Path) -> None:
    rows = [{"vector": [0.5, -1.5, 0.1], "rewards": {"a": 1, "b": 0}}, {"vector": [1, 2, 3], "rewards": {"a": 0, "b": 1}}]
    table = read_table(jsonl(tmp_path / "t.jsonl", rows))
    np.testing.assert_array_equal(table.vectors, np.array([[0.5, -1.5, 0.1], [1, 2, 3]], dtype=np.float32))
    table = read_table(write_csv(tmp_path / "t.csv", wide_rows()), columns=Columns(one_hot="kind"))
    np.testing.assert_array_equal(table.vectors, np.eye(3, dtype=np.float32))
    as_text = [{"id": p, "vector": json.dumps([1.0, i]), **SCORES[p]} for i, p in enumerate(SCORES)]
    table = read_table(write_csv(tmp_path / "v.csv", as_text))
    np.testing.assert_array_equal(table.vectors, [[1, 0], [1, 1], [1, 2]])


def test_vectors_are_posted_as_little_endian_float32(tmp_path: Path) -> None:
    rows = [{"vector": [1.0, -2.0], "rewards": {"a": 1, "b": 0}}]
    body = read_table(jsonl(tmp_path / "t.jsonl", rows)).bodies("vector")[0]
    assert body == {"vector": "AACAPwAAAMA="}  # 00 00 80 3f, 00 00 00 c0


def test_the_expected_reward_is_the_same_expression_of_the_expected_score(tmp_path: Path) -> None:
    rows = [{"rewards": {"a": 1, "b": 0}, "expected": {"a": 0.25, "b": 0.5}, "costs": {"a": 0.1, "b": 0.2}}]
    table = read_table(jsonl(tmp_path / "t.jsonl", rows), reward="2*score - cost")
    np.testing.assert_allclose(table.rewards, [[1.9, -0.2]])
    np.testing.assert_allclose(table.expected, [[0.4, 0.8]])
    assert table.has_expected


def test_models_are_filtered_and_ordered_as_asked(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"id": 1, "a": 1, "b": 2, "c": 3}, {"id": 2, "a": 4, "b": 5, "c": 6}])
    table = read_table(path, models=("c", "a"))
    assert table.arms == ("c", "a")
    np.testing.assert_array_equal(table.rewards, [[3, 1], [6, 4]])


def test_a_model_whose_name_has_a_colon_is_a_model(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "id,llama3:8b,mistral:7b\n1,0.5,1\n"))
    assert table.arms == ("llama3:8b", "mistral:7b")


def test_columns_of_words_and_an_unnamed_index_are_no_models(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", ",id,topic,a,b\n0,x,maths,1,True\n1,y,law,0,false\n"))
    assert table.arms == ("a", "b")
    np.testing.assert_array_equal(table.rewards, [[1, 1], [0, 0]])


def test_a_column_with_punctuation_is_read_by_its_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,model,score,wall-time (s)\n1,a,1,4\n1,b,0,8\n")
    np.testing.assert_allclose(read_table(path, reward="score - wall_time__s_/16").rewards, [[0.75, -0.5]])


def test_holes_are_refused_with_their_place_or_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,a,b\n1,1,0\n2,,1\n3,0,NaN\n4,0,1\n")
    with pytest.raises(BadInput, match=r"t\.csv: line 3: score of a is missing; 2 of 4 prompts have holes"):
        read_table(path)
    table = read_table(path, missing="drop")
    assert table.prompts == ("1", "4")
    assert table.dropped == 2


def test_a_model_without_a_row_is_a_hole(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,model,score\n1,a,1\n1,b,0\n2,b,1\n")
    with pytest.raises(BadInput, match=r"line 4: model a has no row; 1 of 2"):
        read_table(path)
    assert read_table(path, missing="drop").prompts == ("1",)


def test_a_missing_cost_is_a_hole_and_never_free_of_charge(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,model,score,cost\n1,a,1,0.5\n1,b,0,\n")
    with pytest.raises(BadInput, match="cost of b is missing"):
        read_table(path)


def test_a_ragged_jsonl_row_does_not_borrow_from_its_neighbour(tmp_path: Path) -> None:
    rows = [{"id": 1, "model": "a", "score": 1}, {"id": 1, "model": "b"}]
    with pytest.raises(BadInput, match="score of b is missing"):
        read_table(jsonl(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("id,a,b\n", "has no rows"),
        ("id,a,a\n1,2,3\n", "none twice"),
        ("id,a,b\n1,2\n", "line 2 has 2 cells under 3 columns"),
        ("id,a,b\n1,2,3,4\n", "line 2 has 4 cells under 3 columns"),
        ('id,a,b\n1,"2,3\n', "is not CSV"),
        ("id,a,b\n1,2,3\n1,2,3\n", "line 3: prompt '1' has a second row"),
        ("id,model,score\n1,a,1\n1,a,1\n", "line 3: prompt '1' has a second row for model 'a'"),
        ("id,model,score\n1,a,1\n2,a,1\n", "at least two models"),
        ("id,model,score\n,a,1\n", "line 2: id is missing"),
        ("id,model,score\n1,,1\n", "line 2: model is missing"),
        ("model,score\na,1\n", "name the column of the prompt"),
        ("id,model,score\n1,a,good\n1,b,1\n", "line 2: score of a is not a number: 'good'"),
        ("id,model,score\n1,a,inf\n1,b,1\n", "line 2: score of a is not finite: 'inf'"),
        ("id,model,score\n1,a,1e999\n1,b,1\n", "is not finite"),
        ("id,model,score\n1,a,1_0\n1,b,1\n", "is not a number"),
        ("id,model,score,cost\n1,a,1,-1\n1,b,1,1\n", "line 2: cost of a is negative"),
        ("id,model,points\n1,a,1\n1,b,1\n", "reads 'score', which is not a column"),
        ("id,topic\n1,maths\n", "at least two models"),
        ("id,a,b\n1,,\n2,,\n", "at least two models"),
        ("id,a,b,vector\n1,1,1,\n", "vector is missing"),
        ('id,a,b,vector\n1,1,1,"[1, NaN]"\n', "finite"),
        ('id,a,b,vector\n1,1,1,"[1e39, 1]"\n', "finite"),
        ("id,a,b,vector\n1,1,1,[]\n", "at least one"),
        ("id,a,b,vector\n1,1,1,seven\n", "is not a list of numbers"),
        ('id,a,b,vector\n1,1,1,"[1, 2]"\n2,1,1,"[1, 2, 3]"\n', "line 3: vector has 3 numbers, the first row has 2"),
        ('{"id": 1, "rewards": {"a": 1, "b": 1}}\nnonsense\n', "line 2 is not JSON"),
        ('{"id": 1, "rewards": {"a": 1, "b": 1}}\n[1]\n', "line 2 is not a JSON object"),
        ('{"id": 1, "rewards": {"a": 1, "b": 1}}\n{"id": 2, "rewards": 7}\n', "line 2: rewards must be an object"),
        ('{"id": 1, "rewards": {"a": 1, "b": [1]}}\n', "score of b is not a number|rewards of b is not a number"),
        ('{"id": 1, "rewards": {"a": 1, "b": 1' + "0" * 400 + "}}\n", "is not a number"),
    ],
)
def test_a_wrong_file_is_one_clear_line_that_names_the_file_and_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as failure:
        read_table(write(tmp_path / "t.csv", text))
    assert failure.value.message.startswith("t.csv")
    assert "\n" not in failure.value.message
    assert failure.value.exit_code == 2


def test_bytes_that_are_no_text_or_no_gzip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,a,b\n\xff\xfe,1,2\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"id,a,b\n1,2,3\n")[:-9])
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(tmp_path / "t.csv.gz")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid,a,b\r\n1,0.5,1\r\n\r\n2,1,0\r\n")
    table = read_table(tmp_path / "t.csv")
    assert table.prompts == ("1", "2")


def test_a_text_is_needed_for_a_text_embedder_and_a_vector_for_vector(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "id,prompt,a,b\n1,hello,1,0\n2,,1,0\n"))
    with pytest.raises(BadInput, match="no text for prompt '2'"):
        table.bodies("minilm")
    with pytest.raises(BadInput, match="has no vectors"):
        table.bodies("vector")


def check(table: Table) -> None:
    assert np.isfinite(table.rewards).all()
    assert table.rewards.shape == (len(table.prompts), len(table.arms)) == table.costs.shape
    assert len(set(table.prompts)) == len(table.prompts)


cells = st.one_of(
    st.sampled_from(["", "NaN", "inf", "-1", "0.5", "1e400", "a", "b", "[1]", '"', "id", "model", "score", ":", "\n", "{"]),
    st.text(max_size=5),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(cells, min_size=1, max_size=5), min_size=1, max_size=6), st.booleans())
def test_no_csv_does_anything_but_a_sound_table_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, quoted: bool
) -> None:
    text = io.StringIO(newline="")
    if quoted:
        csv.writer(text).writerows([["id", "model", "score"], *rows])
    else:
        text.write("\n".join(",".join(row) for row in rows))
    path = tmp_path_factory.getbasetemp() / "wild.csv"
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    try:
        check(read_table(path, missing="drop"))
    except BadInput:
        return


json_cells = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["id", "prompt", "vector", "rewards", "costs", "a", "b", "model", "score"]), json_cells)
    )
)
def test_no_jsonl_does_anything_but_a_sound_table_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "wild.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    try:
        check(read_table(path, missing="drop"))
    except BadInput:
        return
