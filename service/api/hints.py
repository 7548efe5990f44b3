"""Hints for a wrong body, found in its schema: which fields an object has, and an example of what would be taken at a place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, get_args

import msgspec
from pydantic import BaseModel

from service.api import requests as schemas
from service.api.requests import EXAMPLES, POLICY_MODELS, Body, Content

LISTED_FIELDS = 12
"""Fields that an object may have for a message to list them all."""

_MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (*vars(schemas).values(), *POLICY_MODELS.values())
    if isinstance(model, type) and issubclass(model, Body)
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that an annotation names, those in unions and lists too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def model_named(title: str) -> type[BaseModel] | None:
    """The model whose validation failed, by what pydantic calls it."""
    return _MODELS.get(title)


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "arms"?`, or nothing where no name is close."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f'; did you mean "{found[0]}"?' if found else ""


def fields_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
    """What to send instead of the unknown field at a place."""
    model = _model_at(root, location[:-1])
    if model is None:
        return "; check the spelling"
    fields = _fields_of(model)
    near = closest(str(location[-1])[:64], fields)
    if near or len(fields) > LISTED_FIELDS:
        return near or "; GET /openapi.json describes the fields"
    return f"; the fields here are {', '.join(fields)}" if len(fields) > 1 else f"; the only field here is {fields[0]}"


def object_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
    """What an object at a place may be: its alternatives where it is one of several, and an example."""
    model = _model_at(root, location)
    one_of = f" with one of {', '.join(model.ONE_OF)}" if model is not None and issubclass(model, Content) else ""
    return f"{one_of}, e.g. {_written({} if model is None else _example_of(model))}"


def list_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
    """An example of the list at a place; nothing where the schema has none."""
    names = [i for i, part in enumerate(location) if isinstance(part, str)]
    owner = _model_at(root, location[: names[-1]]) if names else None
    field = owner.model_fields.get(str(location[names[-1]])) if owner is not None else None
    if field is None:
        return ""
    if field.examples:
        example = field.examples[0]
        for _ in location[names[-1] + 1 :]:
            example = example[0]
    else:
        example = [_example_of(model) for model in models_in(field.annotation)][:1]
    return f", e.g. {_written(example)}" if example else ""


def _model_at(root: type[BaseModel] | None, location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model of the object at a place. What pydantic adds to a path is a policy's kind, or a tag that changes no model."""
    found = root
    for part in location:
        if found is not None and part in found.model_fields:
            found = next(models_in(found.model_fields[str(part)].annotation), None)
        elif part in POLICY_MODELS:
            found = POLICY_MODELS[str(part)]
    return found


def _fields_of(model: type[BaseModel]) -> list[str]:
    if issubclass(model, Content):
        return list(model.ONE_OF)
    return list(model.model_fields)


def _example_of(model: type[BaseModel]) -> Any:
    """The schema's own, or what must be sent, or the first field that has an example."""
    if issubclass(model, schemas.PolicySpec):
        return {"kind": (*get_args(model.model_fields["kind"].annotation), EXAMPLES["kind"])[0]}
    extra: Any = model.model_config.get("json_schema_extra") or {}
    if extra.get("examples"):
        return extra["examples"][0]
    required = {name: EXAMPLES[name] for name, field in model.model_fields.items() if field.is_required()}
    given = ((name, field.examples[0]) for name, field in model.model_fields.items() if field.examples)
    return required or dict(islice(given, 1))


def _written(example: Any) -> str:
    return msgspec.json.encode(example).decode()
