"""The four APIs: what is read of a request and of an answer, whole or as a stream. All else passes as it came.

Objects are taken apart one level deep (`Fields`): the values that are not looked at stay the bytes that they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from service.api.facade.sse import Event, with_data

Fields = dict[str, Raw]
"""An object of JSON: its values as they were written."""
Json = dict[str, Any]

NULL = b"null"
fields_decoder = msgspec.json.Decoder(Fields)
any_decoder = msgspec.json.Decoder()
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoders raise: no JSON, or another type; no UTF-8 in a text that is read; thousands of objects in each other."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Of tokens. With another number an answer says nothing of its tokens."""


class _Details(msgspec.Struct):
    cached_tokens: Count | None = 0


class Usage(msgspec.Struct):
    """Tokens of a call, under the names of either API."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None

    @property
    def read(self) -> int | None:
        """Tokens of the prompt."""
        return self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens

    @property
    def written(self) -> int | None:
        """Tokens of the answer."""
        return self.completion_tokens if self.completion_tokens is not None else self.output_tokens

    @property
    def cached(self) -> int:
        """Tokens of the prompt that the upstream had in its cache."""
        details = self.prompt_tokens_details or self.input_tokens_details
        return (details.cached_tokens or 0) if details else 0


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    message: _Said | None = None
    delta: _Said | None = None


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Item(msgspec.Struct):
    content: list[_Part] | None = None


class _Picture(msgspec.Struct):
    b64_json: str | None = None


_usage_decoder = msgspec.json.Decoder(Usage | None)
_choices_decoder = msgspec.json.Decoder(list[_Choice])
_items_decoder = msgspec.json.Decoder(list[_Item])
_pictures_decoder = msgspec.json.Decoder(list[_Picture])


MAX_TEXT = 2**22
"""Characters of an answer that are kept for its outcome: more than one that is accepted has."""


@dataclass
class Answer:
    """What is known of an answer so far. texts: by choice, in pieces.  images: in base64.  pictures: how many, with those that
    have a URL alone.  error: the upstream's own word that it failed, after it had begun to answer.
    """

    usage: Usage | None = None
    texts: dict[int, list[str]] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    pictures: int = 0
    is_complete: bool = False
    error: str = ""
    _kept: int = 0

    def add_text(self, choice: int, text: str | None) -> None:
        """More of the text of a choice."""
        if text and self._kept < MAX_TEXT:
            self._kept += len(text)
            self.texts.setdefault(choice, []).append(text)

    def outputs(self) -> list[Json]:
        """What the model made, as an outcome has it."""
        texts = [{"text": "".join(pieces)} for _, pieces in sorted(self.texts.items())]
        return texts or [{"image": image} for image in self.images]


class NotAnAnswerError(Exception):
    """What came is not what the API answers."""


class Surface:
    """One API. path: below the base URL of an upstream.  prompt_field: the field of a request that holds the prompt.
    answers_with: a field that every whole answer has.
    """

    path: str
    prompt_field: str
    answers_with: str
    streams = True

    def prompt(self, request: Mapping[str, Any]) -> Json | None:
        """The prompt of the decision; None where there are no words in the request."""
        raise NotImplementedError

    def read_outputs(self, raw: Raw, answer: Answer) -> None:
        """What the model made, from the field `answers_with`."""
        raise NotImplementedError

    def read(self, body: bytes, model: bytes) -> tuple[bytes, Answer]:
        """A whole answer with the name of its model replaced, and what it says. Raises `NotAnAnswerError`. model: as JSON."""
        fields = _fields(body)
        if is_given(fields, "error"):
            raise NotAnAnswerError("an error in place of an answer")
        if self.answers_with not in fields:
            raise NotAnAnswerError(f"JSON without {self.answers_with}")
        answer = Answer(usage=usage_of(fields), is_complete=True)
        self.read_outputs(fields[self.answers_with], answer)
        replace_model(fields, model)
        return msgspec.json.encode(fields), answer

    def asking_for_usage(self, fields: Fields, request: Mapping[str, Any]) -> Fields:
        """A request for a stream that also says how many tokens there were."""
        return fields

    def events(self, model: bytes, *, shows_usage: bool) -> StreamReader:
        """What reads a stream of this API. shows_usage: the client asked for the tokens."""
        return TypedEvents(self, model)


class StreamReader:
    """Reads the events of one answer. model: the name that the client knows, as JSON.  has_begun: an event of the answer came."""

    def __init__(self, surface: Surface, model: bytes) -> None:
        self.answer = Answer()
        self.has_begun = False
        self._surface = surface
        self._model = model

    def take(self, event: Event) -> bytes:
        """What the client gets of an event; b"" where it gets nothing. After `answer.error` it gets `end_with_error`."""
        raise NotImplementedError

    def end(self) -> bytes:
        """What is sent where a complete stream stopped without its last event."""
        return b""

    def end_with_error(self, error: Json) -> bytes:
        """The last event of an answer that was cut. error: as in `{"error": ...}`."""
        raise NotImplementedError


class ChatEvents(StreamReader):
    """Chunks of chat completions: unnamed events, `[DONE]` at the end."""

    DONE = b"data: [DONE]\n\n"

    def __init__(self, surface: Surface, model: bytes, *, shows_usage: bool) -> None:
        super().__init__(surface, model)
        self._shows_usage = shows_usage
        self._is_finished = False  # a choice said why it ended; servers without [DONE] close the connection after it

    def take(self, event: Event) -> bytes:
        if event.data is None:
            return event.raw
        if event.data.startswith(b"[DONE]"):
            self.answer.is_complete = True
            return self.DONE
        fields = _fields(event.data)
        if is_given(fields, "error"):
            self.answer.error = "an error in the stream"
            return b""
        if (usage := usage_of(fields)) is not None:
            self.answer.usage = usage
        choices = _decoded(_choices_decoder, fields.get("choices")) or []
        for choice in choices:
            self.answer.add_text(choice.index, choice.delta.content if choice.delta else None)
            self._is_finished |= choice.finish_reason is not None
        if not self._shows_usage and "usage" in fields:  # it was asked for here, not by the client
            if usage is not None and not choices:
                return b""
            if usage is None:
                del fields["usage"]
        self.has_begun = True
        replace_model(fields, self._model)
        return with_data(event.raw, msgspec.json.encode(fields))

    def end(self) -> bytes:
        if self.answer.is_complete or not self._is_finished:
            return b""
        self.answer.is_complete = True
        return self.DONE

    def end_with_error(self, error: Json) -> bytes:
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


class TypedEvents(StreamReader):
    """Events that carry a `type` and end with one of completion: those of responses and of pictures."""

    def __init__(self, surface: Surface, model: bytes) -> None:
        super().__init__(surface, model)
        self._number = -1

    def take(self, event: Event) -> bytes:
        if event.data is None:
            return event.raw
        if event.data.startswith(b"[DONE]"):  # some servers send it here, too
            return event.raw
        fields = _fields(event.data)
        kind = _decoded(any_decoder, fields.get("type")) or ""
        number = _decoded(any_decoder, fields.get("sequence_number"))
        self._number = number if isinstance(number, int) else self._number
        if kind in ("error", "response.failed") or (not kind and is_given(fields, "error")):
            self.answer.error = "an error in the stream"
            return b""
        self.has_begun = True
        inner = _fields(fields["response"]) if is_given(fields, "response") else fields
        if kind in ("response.completed", "response.incomplete", "image_generation.completed"):
            self.answer.is_complete = True
            self.answer.usage = usage_of(inner)
            if "b64_json" in inner:
                self._surface.read_outputs(Raw(b"[" + msgspec.json.encode(inner) + b"]"), self.answer)
            elif self._surface.answers_with in inner:
                self._surface.read_outputs(inner[self._surface.answers_with], self.answer)
        if "model" not in inner:
            return event.raw
        replace_model(inner, self._model)
        if inner is not fields:
            fields["response"] = Raw(msgspec.json.encode(inner))
        return with_data(event.raw, msgspec.json.encode(fields))

    def end_with_error(self, error: Json) -> bytes:
        # `error` beside the fields of the API: its own client reads an error in a stream there
        body = {
            "type": "error",
            "sequence_number": self._number + 1,
            **{name: error[name] for name in ("code", "message", "param")},
        }
        return b"event: error\ndata: " + msgspec.json.encode({**body, "error": error}) + b"\n\n"


class ChatCompletions(Surface):
    """POST /v1/chat/completions."""

    path = "/chat/completions"
    prompt_field = "messages"
    answers_with = "choices"

    def prompt(self, request: Mapping[str, Any]) -> Json | None:
        messages = request.get("messages")
        return None if messages is None else {"messages": messages}

    def asking_for_usage(self, fields: Fields, request: Mapping[str, Any]) -> Fields:
        given = request.get("stream_options")
        options = {**(given if isinstance(given, dict) else {}), "include_usage": True}
        return {**fields, "stream_options": Raw(msgspec.json.encode(options))}

    def read_outputs(self, raw: Raw, answer: Answer) -> None:
        for choice in _decoded(_choices_decoder, raw) or ():
            answer.add_text(choice.index, choice.message.content if choice.message else None)

    def events(self, model: bytes, *, shows_usage: bool) -> StreamReader:
        return ChatEvents(self, model, shows_usage=shows_usage)


class Responses(Surface):
    """POST /v1/responses."""

    path = "/responses"
    prompt_field = "input"
    answers_with = "output"

    def prompt(self, request: Mapping[str, Any]) -> Json | None:
        given = request.get("input")
        said = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(said, list):
            return None
        messages = [item for item in said if isinstance(item, dict) and "role" in item]  # others are calls of tools and the like
        instructions = request.get("instructions")
        if isinstance(instructions, str):
            messages.insert(0, {"role": "system", "content": instructions})
        return {"messages": messages} if messages else None

    def read(self, body: bytes, model: bytes) -> tuple[bytes, Answer]:
        content, answer = super().read(body, model)
        if _decoded(any_decoder, _fields(body).get("status")) in ("failed", "cancelled"):
            raise NotAnAnswerError("a response that failed")
        return content, answer

    def read_outputs(self, raw: Raw, answer: Answer) -> None:
        for item in _decoded(_items_decoder, raw) or ():
            for part in item.content or ():
                answer.add_text(0, part.text if part.type == "output_text" else None)


class ImageGenerations(Surface):
    """POST /v1/images/generations."""

    path = "/images/generations"
    prompt_field = "prompt"
    answers_with = "data"

    def prompt(self, request: Mapping[str, Any]) -> Json | None:
        text = request.get("prompt")
        return {"text": text} if isinstance(text, str) and text.strip() else None

    def read_outputs(self, raw: Raw, answer: Answer) -> None:
        for picture in _decoded(_pictures_decoder, raw) or ():
            if picture.b64_json:
                answer.images.append(picture.b64_json)
            answer.pictures += 1


class Embeddings(Surface):
    """POST /v1/embeddings."""

    path = "/embeddings"
    prompt_field = "input"
    answers_with = "data"
    streams = False

    def prompt(self, request: Mapping[str, Any]) -> Json | None:
        given = request.get("input")
        texts = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
        if isinstance(given, list) and len(texts) < len(given):  # numbers of tokens say nothing here
            return None
        text = "\n".join(texts)
        return {"text": text} if text.strip() else None

    def read_outputs(self, raw: Raw, answer: Answer) -> None:
        """A vector is no output that a bandit learns from."""


# -- objects ---------------------------------------------------------------------------------------------------------------------


def _fields(content: bytes | Raw) -> Fields:
    """Raises `NotAnAnswerError`."""
    try:
        return fields_decoder.decode(content)
    except UNREADABLE as error:
        raise NotAnAnswerError("no JSON object") from error


def is_given(fields: Mapping[str, Raw], name: str) -> bool:
    """Whether a field is there and not null."""
    return bytes(fields.get(name, NULL)) != NULL


def usage_of(fields: Mapping[str, Raw]) -> Usage | None:
    """The tokens that an answer names, None where it names none."""
    found: Usage | None = _decoded(_usage_decoder, fields.get("usage"))
    return found


def replace_model(fields: Fields, model: bytes) -> None:
    """Put the name that the client knows in place of the upstream's, where there is one."""
    if "model" in fields:
        fields["model"] = Raw(model)


def _decoded(decoder: msgspec.json.Decoder[Any], raw: Raw | None) -> Any:
    """The value, None where it is missing or of another kind: answers of servers differ in what is optional."""
    try:
        return None if raw is None else decoder.decode(raw)
    except UNREADABLE:
        return None
