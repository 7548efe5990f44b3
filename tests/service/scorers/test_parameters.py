"""A scorer's parameter is declared once: the body, its errors, the answers, OpenAPI and the page on scorers follow from that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from service.api.requests import RewardSpec
from service.scorers import registry
from service.scorers.base import Parameter, ScorerSpec

ROOT = Path(__file__).resolve().parents[3]

ANOTHER_SCORER = """
import asyncio, json
from typing import Annotated

from pydantic import Field

from service.scorers import registry
from service.scorers.base import Parameter, ScorerSpec

registry.SCORERS["few-words"] = ScorerSpec(
    name="few-words", reads=("text",), summary="Whether the text has few words.",
    build=lambda parameters: lambda sample: float(len(sample.output.split()) <= parameters["words"]),
    parameters={"words": Parameter(annotation=Annotated[int, Field(ge=0, le=9)], doc="how many are few.", is_needed=True)},
)

from tests.service.http_client import GREEDY, opened

BODY = {**GREEDY, "reward": {"source": "few-words", "words": 0}}

async def main():
    async with opened() as service:
        async def refusal(reward):
            return (await service.put("/v1/bandits/refused", {**GREEDY, "reward": reward})).json()["errors"]

        await service.create("b", BODY)
        repeated = await service.put("/v1/bandits/b", BODY)
        decision = await service.decide("b")
        receipt = await service.observe(decision["id"], {"output": "a word"}, name="b")
        await service.create("plain", GREEDY)
        return {
            "document": (await service.get("/openapi.json")).json()["components"]["schemas"],
            "missing": await refusal({"source": "few-words"}),
            "out of bounds": await refusal({"source": "few-words", "words": 10}),
            "of another scorer": await refusal({"source": "json-valid", "words": 1}),
            "listed": (await service.get("/v1/embedders")).json()["scorers"][-1]["parameters"],
            "repeated": repeated.status_code,
            "answered": repeated.json()["reward"],
            "learned": receipt["reward"],
            "stored": [(await service.log(name=name))[0]["request"]["reward"] for name in ("b", "plain")],
        }

print(json.dumps(asyncio.run(main())))
"""


@pytest.fixture(scope="module")
def extended() -> Any:
    """What a service says that has one more scorer."""
    done = subprocess.run([sys.executable, "-c", ANOTHER_SCORER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_a_declared_parameter_is_in_the_openapi_document(extended: Any) -> None:
    bounds = {"type": "integer", "minimum": 0, "maximum": 9}
    asked = extended["document"]["RewardSpec"]["properties"]["words"]
    assert asked["anyOf"] == [bounds, {"type": "null"}]
    assert asked["description"] == "`few-words`: how many are few."
    answered = extended["document"]["RewardAnswer"]
    assert answered["properties"]["words"].items() >= bounds.items()
    assert "words" not in answered.get("required", ())
    for schema in ("RewardSpec", "RewardAnswer"):
        fields = list(extended["document"][schema]["properties"])
        assert (fields[:2], fields[-3:]) == (["source", "override"], ["options", "default", "timeout_s"])


def test_a_declared_parameter_is_checked(extended: Any) -> None:
    for fault, words in (("missing", "is needed"), ("out of bounds", "at most 9"), ("of another scorer", "leave it out")):
        (problem,) = extended[fault]
        assert problem["path"] == "reward.words", fault
        assert words in problem["message"]


def test_a_declared_parameter_is_listed_used_and_answered_also_where_it_is_zero(extended: Any) -> None:
    assert extended["listed"] == ["words"]
    assert extended["learned"] == 0.0
    assert extended["repeated"] == 200
    assert extended["answered"] == {"source": "few-words", "words": 0, "default": None, "timeout_s": 86400.0}


def test_a_parameter_that_is_not_given_changes_no_stored_request(extended: Any) -> None:
    with_words, without = extended["stored"]
    assert with_words["words"] == 0
    first_release = {"source", "override", "pattern", "expected", "target", "options", "default", "timeout_s"}
    assert set(without) == first_release


def scorer(name: str, annotation: Any, *, of_first_release: bool = False) -> ScorerSpec:
    parameter = Parameter(annotation=annotation, doc="a limit.", of_first_release=of_first_release)
    return ScorerSpec(
        name=name, reads=("text",), summary="", build=lambda parameters: lambda sample: 0.0, parameters={"limit": parameter}
    )


def test_scorers_may_share_a_parameter_of_one_kind() -> None:
    merged = registry.parameters(scorer(name, Annotated[int, Field(ge=1)]) for name in ("one", "two"))
    assert merged["limit"].doc == "`one`: a limit. `two`: a limit."


@pytest.mark.parametrize("other", [scorer("two", int), scorer("two", Literal["x"]), scorer("two", Annotated[int, Field(ge=2)])])
def test_two_kinds_of_one_parameter_are_refused(other: ScorerSpec) -> None:
    with pytest.raises(ValueError, match="'two' has a parameter 'limit' of another kind"):
        registry.parameters([scorer("one", Annotated[int, Field(ge=1)]), other])


def test_no_parameter_takes_the_name_of_a_field_of_every_reward() -> None:
    every = {"source", "override", "options", "default", "timeout_s"}
    assert set(RewardSpec.model_fields) == every | set(registry.parameters(registry.SCORERS.values()))
    assert not every & set(registry.parameters(registry.SCORERS.values()))


def test_the_table_of_scorers_in_the_docs_is_what_they_declare() -> None:
    table = (ROOT / "docs" / "embedders.md").read_text().partition("| `reward.source` |")[2].partition("\n\n")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines()[2:]]
    shown = {row[0].strip("`"): row[3].partition(";")[0] for row in rows}
    declared = {
        name: ", ".join(f"`{field}`" + ", needed" * parameter.is_needed for field, parameter in spec.parameters.items()) or "none"
        for name, spec in registry.SCORERS.items()
    }
    assert shown == declared
