"""Errors of validation in words: what pydantic refuses becomes fields and messages of a problem, with hints from the schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, get_args

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from bandits.registry import POLICIES
from service.api import requests as schemas
from service.api.problems import LISTED, NAMED, Problem, invalid_fields
from service.api.requests import EXAMPLES, ID, MESSAGE_CONTENT, NAME, POLICY_MODELS, SIGNAL, Body, Content

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


def _model_named(title: str) -> type[BaseModel] | None:
    """The model whose validation failed, by what pydantic calls it."""
    return _MODELS.get(title)


def _closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "arms"?`, or nothing where no name is close."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f'; did you mean "{found[0]}"?' if found else ""


def _fields_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
    """What to send instead of the unknown field at a place."""
    model = _model_at(root, location[:-1])
    if model is None:
        return "; check the spelling"
    fields = _fields_of(model)
    near = _closest(str(location[-1])[:64], fields)
    if near or len(fields) > LISTED_FIELDS:
        return near or "; GET /openapi.json describes the fields"
    return f"; the fields here are {', '.join(fields)}" if len(fields) > 1 else f"; the only field here is {fields[0]}"


def _object_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
    """What an object at a place may be: its alternatives where it is one of several, and an example."""
    model = _model_at(root, location)
    one_of = f" with one of {', '.join(model.ONE_OF)}" if model is not None and issubclass(model, Content) else ""
    return f"{one_of}, e.g. {_written({} if model is None else _example_of(model))}"


def _list_hint(root: type[BaseModel] | None, location: Sequence[int | str]) -> str:
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


def validation_problem(error: RequestValidationError | ValidationError, body: type[BaseModel] | None = None) -> Problem:
    """A 422 that lists every wrong field by its path, without echoing any value. body: the model of the request's body, where the
    error does not name it.
    """
    return invalid_fields(wrong_fields(error, body))


def wrong_fields(
    error: RequestValidationError | ValidationError, body: type[BaseModel] | None = None, *, within: str = ""
) -> list[tuple[str, str]]:
    """(path, message) of each wrong field. within: the path of the value that was validated, unless that is the body."""
    root = _model_named(error.title) if isinstance(error, ValidationError) else body
    listed = []
    for item in error.errors()[:LISTED]:
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            near = _closest(str(item["ctx"].get("tag", ""))[:NAMED], POLICIES)
            listed.append(("policy.kind", f"must be one of {', '.join(POLICIES)}{near}"))
        else:
            path = ".".join(filter(None, (within, _path(item["loc"]))))
            listed.append((path or "body", _message(item, root)))
    return listed


WHOLE_NUMBER = "must be a whole number"
MESSAGES = {
    "extra_forbidden": "is not a field here",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object, e.g. {}",
    "list_type": "must be a list",
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be 1 or 0",
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_type": "must be a number; for yes and no send 1 and 0, without quotes",
    "finite_number": "must be a finite number",
    "none_required": "is not taken here; leave it out",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "message_content": 'must be a string or a list of parts, e.g. [{"type": "text", "text": "..."}]',
}
"""By type of error, with what pydantic knows of it. Its own words speak of Python, so no client gets them."""
HINTS = {
    "extra_forbidden": _fields_hint,
    "model_attributes_type": _object_hint,
    "model_type": _object_hint,
    "list_type": _list_hint,
}
"""By type of error: what follows, from the schema of the place."""
OTHERWISE = "is not what is taken here; GET /openapi.json describes the field"
"""For a type of error that the table lacks."""


PATTERNS = {
    NAME: "must be 1 to 63 characters of a-z 0-9 _ -, the first a letter or digit",
    ID: "must be 1 to 64 characters of A-Z a-z 0-9 _ -",
    SIGNAL: "must be 1 to 32 characters of a-z 0-9 _, the first a letter",
    r"\S": "must not be empty or blank",
}
"""In words, what each regular expression asks for."""


def _message(item: Any, root: type[BaseModel] | None) -> str:
    known: dict[str, Any] = item.get("ctx", {})
    match item["type"]:
        case "value_error":
            return str(known["error"])
        case "missing":
            name = item["loc"][-1] if item["loc"] else "body"
            if name in EXAMPLES:
                return f"is missing; send it, e.g. {_example(name)}"
            return f"is missing; send a JSON object{_object_hint(root, ())}"
        case "string_pattern_mismatch":
            return PATTERNS.get(known["pattern"], OTHERWISE)
        case "string_too_short" | "string_too_long":
            return _bounded(known, "character")
        case "too_short" | "too_long":
            return _bounded(known, "item")
        case kind:
            message = MESSAGES.get(kind, OTHERWISE)
            for name, value in known.items():
                message = message.replace(f"{{{name}}}", _number(value))
            return message + HINTS[kind](root, _within_body(item["loc"])) if kind in HINTS else message


def _bounded(known: Mapping[str, Any], what: str) -> str:
    side, bound = ("least", known["min_length"]) if "min_length" in known else ("most", known["max_length"])
    return f"must have at {side} {bound:,} {what}{'' if bound == 1 else 's'}"


def _number(value: Any) -> str:
    """9007199254740992 and 65536 in full, 1e+12 short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _example(name: str) -> str:
    return f'"{name}": {msgspec.json.encode(EXAMPLES[name]).decode()}'


def _within_body(location: Sequence[int | str]) -> Sequence[int | str]:
    """Without the part of the request, which the framework puts before."""
    return location[1:] if location and location[0] in ("body", "query", "path", "header") else location


def _path(location: Sequence[int | str]) -> str:
    """`policy.exploration` from what pydantic says, without what it adds: the name of the policy's kind, and the mark of a wrong
    key of an object. Unknown names come from the client: they are cut, as everything that is repeated.
    """
    parts = list(_within_body(location))
    if parts and parts[-1] == "[key]":
        del parts[-1]
    if len(parts) > 1 and parts[0] == "policy" and parts[1] in POLICIES:
        del parts[1]
    parts = [part for part in parts if part not in MESSAGE_CONTENT]
    return ".".join(str(part)[:NAMED] for part in parts)
