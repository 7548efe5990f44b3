"""Bodies of the HTTP contract, validated. Unknown fields are refused, numbers are finite, vectors become float32 at the door.

The policy part is made from the registry: a new policy appears in the schema, the validation and the docs by itself.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import unicodedata
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import msgspec
import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    FiniteFloat,
    GetJsonSchemaHandler,
    StringConstraints,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from bandits.hyperparameters import Declared, declared
from bandits.objective import COST, REWARD
from bandits.registry import DEFAULT_POLICY, POLICIES
from service.embedders.encoding import decode_base64
from service.engine.events import outcome_values
from service.engine.outcomes import MAX_SIGNALS_OF_OUTCOME
from service.scorers import registry as scorers

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MAX_ARM_NAME = 128
ID = r"^[A-Za-z0-9_-]{1,64}$"
SIGNAL = r"^[a-z][a-z0-9_]{0,31}$"
MAX_DIM = 65_536
MAX_ARMS = 1_000
"""Of a bandit at one time: active, or retired with open decisions."""
MAX_ARMS_EVER = 10_000
"""In a bandit's life: a decision in the log weighs every index, gone ones too."""
MAX_SAMPLES = 256
MAX_SIGNALS = 8
"""Learned by a bandit beside `reward` and `cost`."""
MAX_POSTED_SIGNALS = MAX_SIGNALS_OF_OUTCOME
"""With one outcome: those that are not learned are stored."""
MAX_BATCH = 1_024
MAX_METADATA_BYTES = 4_096
MAX_AMOUNT = 1e12
"""Of a reward, a cost or a price: one number beyond it would drown every other in the float64 sums, or overflow them."""
MIN_BUDGET = 1e-12
"""Per decision: a multiplier is a share of its inverse, and a number of the log is finite."""
MAX_COOLDOWN_S = 1e6
MAX_ERROR = 1_000
"""Characters of the error of an outcome."""
MAX_MOMENTS_DIM = 8_192
MAX_CLASSES = 1_000
MAX_MESSAGES = 10_000
WEIGHTS_OFF = 1e-6
"""By which weights that were written with fewer digits may miss a sum of 1."""
PARAMETERS = scorers.parameters(scorers.SCORERS.values())
"""Of the service's own scorers, as they declare them."""
SCORER_FIELDS = (*PARAMETERS, "options")
"""Fields of `reward` that are parameters of a scorer."""
YOUNGER = {
    "reward": tuple(name for name, parameter in PARAMETERS.items() if not parameter.of_first_release),
    "prompt": ("takes", "reads", "keep"),
    "output": ("takes",),
}
"""Optional fields of parts of a bandit's body that came after the first release; null where they are not given."""
WEIGHED_PARTS = ("objective", "budget", "prices_per", "signals")
"""Of a bandit's body: for policies that weigh signals."""
YOUNGER_PARTS = (*WEIGHED_PARTS, "amend_until_s", "cooldown", "session_ttl_s")
"""Optional fields of a bandit's body itself that came after the first release."""
UNKNOWN_SHOWN = 10
"""Unknown fields of one object that an error lists; a million of them must not cost a million errors."""


class Body(BaseModel):
    """Strict about names and types: an unknown field, a number in quotes and a boolean for a number are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, ser_json_inf_nan="null")

    @model_validator(mode="before")
    @classmethod
    def _few_unknown_fields(cls, value: object) -> object:
        if not isinstance(value, dict) or len(value) <= UNKNOWN_SHOWN:  # nearly every object
            return value
        if len(value) <= len(cls.model_fields) + UNKNOWN_SHOWN:
            return value
        known = {name: item for name, item in value.items() if name in cls.model_fields}
        unknown = (name for name in value if name not in cls.model_fields)
        return known | dict.fromkeys(islice(unknown, UNKNOWN_SHOWN))


# -- vectors -------------------------------------------------------------------------------------------------------------------


def to_vector(value: object) -> np.ndarray:
    """(d,) float32 from a JSON list of numbers, or from base64 of little-endian float32."""
    if isinstance(value, str):
        raw = decode_base64(value)
        if len(raw) % 4:
            raise ValueError("base64 must hold little-endian float32: a multiple of 4 bytes")
        array = np.frombuffer(raw, dtype="<f4")
    elif isinstance(value, list):
        if not 1 <= len(value) <= MAX_DIM:
            raise ValueError(f"must have 1 to {MAX_DIM} numbers")
        if not {float, int}.issuperset(map(type, value)):
            raise ValueError("must hold numbers only, without quotes")
        try:
            with np.errstate(over="ignore"):
                array = np.array(value, dtype=np.float64).astype(np.float32)
        except OverflowError as error:
            raise ValueError("holds a number that does not fit float32") from error
    else:
        raise ValueError("must be a list of numbers, or base64 of little-endian float32")
    if not 1 <= len(array) <= MAX_DIM:
        raise ValueError(f"must have 1 to {MAX_DIM} numbers")
    if not np.isfinite(array).all():
        raise ValueError("must be finite, and fit float32")
    return array


Vector = Annotated[
    np.ndarray,
    BeforeValidator(to_vector),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": MAX_DIM},
                {"type": "string", "contentEncoding": "base64"},
            ],
            "description": "Numbers, or base64 of little-endian float32 (much faster).",
            "examples": [[0.1, -0.2, 0.3]],
        }
    ),
]


class OrString(Body):
    """An object that a plain string can stand for."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"description": cls.__doc__, "anyOf": [{"type": "string", "minLength": 1}, handler(schema)]}


class Content(OrString):
    """A prompt or an output: exactly one of its fields. A plain string stands for `text`."""

    ONE_OF: ClassVar[tuple[str, ...]] = ("text", "vector", "image", "probabilities")

    text: str | None = Field(None, description="Text to embed.", examples=["Translate this to French: good morning"])
    vector: Vector | None = Field(None, description="The client's own embedding.")
    image: str | None = Field(None, description="Base64 of a PNG, JPEG or WebP file. URLs are not fetched.")
    probabilities: Vector | None = Field(None, description="Class probabilities, for policies that learn from them.")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in self.ONE_OF if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(self.ONE_OF)}; got {', '.join(given) or 'none'}")
        if self.text is not None and not self.text.strip():
            raise ValueError("text is empty; send at least one character that is not blank")
        return self

    def canonical(self) -> list[Any]:
        """What tells two contents apart, for comparing a repeated request with the first."""
        given = self.vector if self.vector is not None else self.probabilities
        return [self.text, self.image, None if given is None else given.tobytes()]


class _Foreign(Body):
    """A part of a request of another API: what is not read here is ignored."""

    model_config = ConfigDict(extra="ignore")


class MessagePart(_Foreign):
    """A part of a message. Only texts are read."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "text", "text": "Translate this to French: good morning"}]}
    )

    type: str = Field(description="`text` (or `input_text`, `output_text`); others are not read.", examples=["text"])
    text: str | None = Field(None, description="The text.", examples=["Translate this to French: good morning"])


MESSAGE_CONTENT = ("content-text", "content-parts")
"""What pydantic adds to the path of an error in the content of a message."""


def _kind_of_content(value: object) -> str | None:
    return MESSAGE_CONTENT[0] if isinstance(value, str) else MESSAGE_CONTENT[1] if isinstance(value, list) else None


class Message(_Foreign):
    """A message as chat APIs have it; further fields are ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"role": "user", "content": "Translate this to French: good morning"}]}
    )

    role: str = Field(min_length=1, max_length=64, description="`user`, `assistant`, `system`, ...", examples=["user"])
    content: (
        Annotated[
            Annotated[str, Tag(MESSAGE_CONTENT[0])] | Annotated[list[MessagePart], Tag(MESSAGE_CONTENT[1])],
            Discriminator(_kind_of_content, custom_error_type="message_content", custom_error_message="wrong"),
        ]
        | None
    ) = Field(None, description="A text, or parts.", examples=["Translate this to French: good morning"])

    def text(self) -> str:
        """What it says in words."""
        if isinstance(self.content, list):
            texts = (part.text for part in self.content if part.type in ("text", "input_text", "output_text"))
            return "\n".join(filter(None, texts))
        return self.content or ""


class Prompt(Content):
    """A string, `{"text"}`, `{"messages"}`, `{"vector"}` or `{"image"}`."""

    ONE_OF: ClassVar[tuple[str, ...]] = ("text", "messages", "vector", "image")

    probabilities: None = Field(None, exclude=True, description="Not for prompts.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        None, description="A conversation in the form of chat APIs; the bandit's `prompt.reads` says what is read of it."
    )

    def canonical(self) -> list[Any]:
        if self.messages is None:
            return super().canonical()
        return [*super().canonical(), [message.model_dump() for message in self.messages]]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


class _Outputs:
    """JSON schema: one output or a list of them."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


# The bounds stand before the validator: they belong to the list itself, so that the 257th sample is not even looked at.
Outputs = Annotated[list[Content], Field(min_length=1, max_length=MAX_SAMPLES), BeforeValidator(_as_list), _Outputs]


# -- bandits -------------------------------------------------------------------------------------------------------------------


def _finite_json(value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite; send a finite one or null")
    if isinstance(value, dict):
        for item in value.values():
            _finite_json(item)
    elif isinstance(value, list):
        for item in value:
            _finite_json(item)


def _check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(value)) > MAX_METADATA_BYTES:
        raise ValueError(f"must have at most {MAX_METADATA_BYTES} bytes of compact JSON in UTF-8")
    _finite_json(value)
    return value


_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Invisible characters of visible categories: fillers, the blank braille pattern, variation selectors."""


def check_arm_name(name: str) -> None:
    """Raise ValueError for a name that no new arm may have: it looks empty or like another name, or it cannot stand in a path.

    Arms of older logs may break the rule, so it is asked where an arm is created and nowhere else.
    """
    if not 1 <= len(name) <= MAX_ARM_NAME:
        raise ValueError(f"must have 1 to {MAX_ARM_NAME} characters")
    for character in name:
        if not character.isprintable() or _UNSEEN.match(character):
            raise ValueError(f"holds the character U+{ord(character):04X}, which is not visible; leave it out")
    if name != name.strip():
        raise ValueError("begins or ends with a blank; leave it out")
    if not unicodedata.is_normalized("NFC", name):
        raise ValueError("is not in Unicode normalization form C (NFC); normalize it before you send it")
    if not {"", ".", ".."}.isdisjoint(name.split("/")):  # clients and proxies resolve them: a path would reach another resource
        raise ValueError("has a part between slashes that is empty, `.` or `..`; choose another name")


Takes = Literal["text", "image", "both"]
ArmName = Annotated[str, StringConstraints(max_length=MAX_ARM_NAME)]
ClassPrompt = Annotated[str, StringConstraints(pattern=r"\S", max_length=300)]
Metadata = Annotated[dict[str, Any], AfterValidator(_check_metadata)]
Price = Annotated[FiniteFloat, Field(ge=0, le=MAX_AMOUNT, description="Per call, in USD or any one unit.", examples=[0.0002])]
Reward = Annotated[FiniteFloat, Field(ge=-MAX_AMOUNT, le=MAX_AMOUNT)]
Cost = Annotated[FiniteFloat, Field(ge=0, le=MAX_AMOUNT)]
SessionName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SessionTime = Annotated[FiniteFloat, Field(gt=0, le=1e9)]
SignalName = Annotated[str, StringConstraints(pattern=SIGNAL)]
Objective = Annotated[dict[SignalName, Reward], Field(min_length=1, max_length=MAX_SIGNALS)]


class ArmBody(Body):
    """What can be said about an arm whose name is known."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"price": 0.0003, "metadata": {"provider": "local"}}]})

    price: Price = 0.0
    metadata: Metadata = Field(default_factory=dict, description="Free JSON object of up to 4 KiB, stored and returned.")


class ArmSpec(ArmBody):
    """An arm: a generative model that can be queried."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "small", "price": 0.0002}]})

    name: ArmName = Field(
        description="1 to 128 printable characters in Unicode NFC, without a blank at either end. `/` is allowed; no part "
        "between slashes is empty, `.` or `..`.",
        examples=["small"],
    )


class ModelChoice(Body):
    """Which model of an embedder that has several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "shapes"}]})

    model: str | None = Field(
        None,
        max_length=128,
        description="With `open-clip`: one of its architectures, or a model that is shipped (`shapes`) or lies in "
        "NEXTARM_MODELS (`GET /v1/embedders` lists them); null = the operator's choice, NEXTARM_OPEN_CLIP, where there is one.",
        examples=["ViT-B-32"],
    )
    checkpoint: str | None = Field(
        None,
        max_length=128,
        description="With `open-clip` and an architecture: a pretrained tag in the server's cache, or the name of a file in "
        "NEXTARM_MODELS.",
        examples=["laion2b_s34b_b79k"],
    )


class EmbedderSpec(ModelChoice):
    """How prompts or outputs become vectors."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"embedder": "vector", "dim": 384}, {"embedder": "open-clip", "model": "shapes"}]}
    )

    embedder: str = Field(
        "vector",
        max_length=128,
        description="`vector` (the client embeds), or an embedder of `GET /v1/embedders`; for outputs of policies that learn "
        "from them also `probabilities` (the client classifies).",
        examples=["vector"],
    )
    dim: int | None = Field(None, ge=1, le=MAX_DIM, description="Length of the vector; needed with `vector`.", examples=[384])
    classes: Annotated[list[ClassPrompt], Field(min_length=2, max_length=MAX_CLASSES)] | None = Field(
        None,
        description="With `open-clip` and a policy that learns from probabilities: a text per class; an output's probabilities "
        "are the softmax of 100 times its cosines with them.",
        examples=[["a photo of a cat", "a photo of a dog"]],
    )
    takes: Takes | None = Field(
        None,
        description="With an embedder of texts and images: what is posted here, `text`, `image` or `both`; anything else is "
        "refused. null = `image` for outputs that `clip-score` judges, else `both`, except for a text that is no text: the "
        "base64 of an image, or a URL.",
        examples=["image"],
    )

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("two classes have the same text; give each its own")
        return classes


class PromptSpec(EmbedderSpec):
    """How prompts become vectors."""

    reads: Literal["last_user", "conversation"] | None = Field(
        None,
        description="Of a prompt of `messages`: the last one of role `user` (null is the same), or the texts of all of them.",
        examples=["last_user"],
    )
    keep: Literal["start", "end", "both"] | None = Field(
        None,
        description="Of a text that is longer than the embedder reads (`GET /v1/embedders`): its start (null is the same), its "
        "end, or half of it from either end.",
        examples=["end"],
    )


class _RewardSource(Body):
    """The fields before the parameters of scorers."""

    source: str = Field(
        "client",
        max_length=128,
        description="`client`: posted with the outcome; or a scorer of `GET /v1/embedders`, which judges the posted output.",
        examples=["client"],
    )
    override: bool = Field(
        False, description="With a scorer: a reward that is posted with the outcome wins over the scorer's; else it is refused."
    )


if TYPE_CHECKING:
    _ScorerParameters = _RewardSource
else:
    _ScorerParameters = create_model(
        "_ScorerParameters",
        __base__=_RewardSource,
        **{name: (parameter.annotation | None, Field(None, description=parameter.doc)) for name, parameter in PARAMETERS.items()},
    )


class RewardSpec(_ScorerParameters):
    """Where rewards come from, and what happens when none comes."""

    options: Metadata | None = Field(None, description=scorers.OPTIONS.doc)
    default: Reward | None = Field(
        None, description="Reward that is learned when no outcome came in `timeout_s`; null = the decision just expires."
    )
    timeout_s: Annotated[FiniteFloat, Field(gt=0, le=1e9)] | None = Field(
        None, description="Seconds after which an open decision expires; null = the server's default."
    )

    @model_validator(mode="after")
    def _default_needs_timeout(self) -> Self:
        if self.default is not None and self.timeout_s is None:
            raise ValueError("default needs timeout_s: after how many seconds is an outcome taken as missing?")
        return self

    def parameters(self) -> dict[str, Any]:
        """What was given to the scorer, by name."""
        return {name: value for name in SCORER_FIELDS if (value := getattr(self, name)) is not None}


def _hyperparameter_field(item: Declared) -> Any:
    facts = item.facts
    about = facts.doc + (f" Unit: {facts.unit}." if facts.unit else "") + (f" Source: {facts.source}." if facts.source else "")
    numeric = item.type in (int, float) or item.type in (int | None, float | None)
    bounds: dict[str, Any] = {"ge": facts.at_least, "gt": facts.above, "le": facts.at_most} if numeric else {}
    kind = item.type
    if kind is float:
        kind = FiniteFloat
    elif kind == float | None:
        kind = FiniteFloat | None
    elif get_origin(kind) is Literal:  # the policy itself refuses other words: it can say why
        kind = Annotated[str, WithJsonSchema({"type": "string", "enum": list(get_args(kind))})]
    low, high = facts.sound if numeric else (None, None)
    extra: dict[str, Any] = {name: bound for name, bound in (("minimum", low), ("maximum", high)) if bound is not None}
    if facts.live:
        extra["live"] = True
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return (kind, Field(item.default, description=about, json_schema_extra=extra or None, **given))


class PolicySpec(Body):
    """Base of the generated policy bodies."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: str


def _policy_model(kind: str) -> type[PolicySpec]:
    policy = POLICIES[kind]
    fields = {item.name: _hyperparameter_field(item) for item in declared(policy)}
    title = "".join(part.capitalize() for part in kind.split("-")) + "Policy"
    made: type[PolicySpec] = create_model(
        title,
        __base__=PolicySpec,
        __doc__=policy.summary,
        **{"kind": (Literal[kind], Field(description=policy.summary)), **fields},
    )
    return made


POLICY_MODELS: dict[str, type[PolicySpec]] = {kind: _policy_model(kind) for kind in POLICIES}


if TYPE_CHECKING:
    AnyPolicy = PolicySpec
else:
    AnyPolicy = Annotated[functools.reduce(operator.or_, POLICY_MODELS.values()), Field(discriminator="kind")]


class BudgetBody(Body):
    """What one signal may be per decision in the mean, over the life of the bandit."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"signal": "cost", "per_decision": 0.002}]})

    signal: SignalName = Field(description="`cost`, or one of your own signals.", examples=["cost"])
    per_decision: Annotated[FiniteFloat, Field(ge=MIN_BUDGET, le=MAX_AMOUNT)] = Field(
        description="The mean that is held, in the unit of the signal.", examples=[0.002]
    )

    @field_validator("signal")
    @classmethod
    def _not_the_reward(cls, signal: str) -> str:
        if signal == REWARD:
            raise ValueError("is what decisions maximize; a budget holds `cost`, or a signal of your own")
        return signal


class CooldownBody(Body):
    """When an arm whose calls fail is left out of decisions for a while, unless all that are allowed are."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"errors": 3, "within_s": 60, "for_s": 30}]})

    errors: int = Field(ge=1, le=1_000, description="Outcomes with `error`, one success ends the count.", examples=[3])
    within_s: Annotated[FiniteFloat, Field(gt=0, le=MAX_COOLDOWN_S)] = Field(
        description="Seconds within which they come.", examples=[60.0]
    )
    for_s: Annotated[FiniteFloat, Field(gt=0, le=MAX_COOLDOWN_S)] = Field(
        description="Seconds for which the arm is left out, from the last of them on.", examples=[30.0]
    )


class BanditBody(Body):
    """The configuration of a bandit."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "arms": [{"name": "small", "price": 0.0002}, {"name": "large", "price": 0.01}],
                    "prompt": {"embedder": "vector", "dim": 3},
                },
                {
                    "policy": {"kind": "pak-ucb", "random_features": 128, "exploration": 1.0},
                    "arms": [{"name": "small", "price": 0.0002}, {"name": "large", "price": 0.01}],
                    "prompt": {"embedder": "vector", "dim": 3},
                    "seed": 7,
                },
            ]
        }
    )

    policy: AnyPolicy = Field(
        default_factory=lambda: POLICY_MODELS[DEFAULT_POLICY].model_validate({"kind": DEFAULT_POLICY}),
        description="`kind` and its hyperparameters, `auto` where none is given; `GET /v1/policies` describes them.",
        examples=[{"kind": "auto"}],
    )
    arms: list[ArmSpec] = Field(
        max_length=MAX_ARMS,
        description="The models to choose from; more can come and go later.",
        examples=[[{"name": "small"}, {"name": "large"}]],
    )
    prompt: PromptSpec | None = Field(
        None, description="How prompts are embedded; not needed by policies that ignore the prompt."
    )
    output: EmbedderSpec | None = Field(None, description="How outputs are embedded; only for policies that learn from outputs.")
    reward: RewardSpec = Field(default_factory=RewardSpec, description="Where rewards come from.")
    objective: Objective | None = Field(
        None,
        description="Weight of each signal in what decisions maximize, applied at the moment of the decision; "
        'null = `{"reward": 1}`. For policies that learn a reward.',
        examples=[{"reward": 1.0, "cost": -5.0, "latency_s": -0.02}],
    )
    budget: BudgetBody | None = Field(
        None, description="Holds the running mean of one signal: its weight becomes a multiplier that is paced from the log."
    )
    prices_per: Literal["call", "outcome"] | None = Field(
        None,
        description="`call` (null is the same): the expected cost of an arm is its present price, where it has one. `outcome`: "
        "its present price times the learned ratio of posted costs to prices.",
        examples=["call"],
    )
    signals: Annotated[list[SignalName], Field(max_length=MAX_SIGNALS)] | None = Field(
        None,
        description="Further signals to learn, so that an objective can weigh them later. Others are stored and not learned.",
        examples=[["latency_s"]],
    )
    amend_until_s: Annotated[FiniteFloat, Field(ge=0, le=1e9)] | None = Field(
        None,
        description="Seconds after a decision in which its outcome can be amended; null = a week (604800).",
        examples=[604_800.0],
    )
    cooldown: CooldownBody | None = Field(None, description="Of arms whose calls fail; null = they are chosen all the same.")
    session_ttl_s: SessionTime | None = Field(
        None,
        description="Seconds, from the last decision on, for which later ones of a `session` get the arm of its first; null = "
        "sessions do not count.",
        examples=[3600.0],
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="Of random frequencies and draws; omitted: the server picks one.")

    @field_validator("arms")
    @classmethod
    def _arms_differ(cls, arms: list[ArmSpec]) -> list[ArmSpec]:
        if len({arm.name for arm in arms}) < len(arms):
            raise ValueError("two arms have the same name; give each its own")
        return arms

    @field_validator("signals")
    @classmethod
    def _signals_differ(cls, signals: list[str] | None) -> list[str] | None:
        if signals is not None and len({*signals}) < len(signals):
            raise ValueError("a signal is named twice; name each once")
        return signals or None  # none, whichever way it is said

    def request(self) -> dict[str, Any]:
        """The request with every default filled in: equal for bodies that mean the same. Fields younger than the first release
        stand in it only where they are given, so that a request of that time is still the same request.
        """
        request = self.model_dump(mode="json")
        for part, fields in YOUNGER.items():
            for name in fields:
                if isinstance(request[part], dict) and request[part][name] is None:
                    del request[part][name]
        for name in YOUNGER_PARTS:
            if request[name] is None:
                del request[name]
        return request

    def learned_signals(self) -> list[str]:
        """Names of the signals that are learned, in order: the reward, the cost where it may be weighed, and those named. `auto`
        learns costs in any case: they are next to nothing beside its reward, and an objective may weigh them later.
        """
        named = [*(self.objective or ()), *(() if self.budget is None else (self.budget.signal,)), *(self.signals or ())]
        cost = [COST] if COST in named or self.policy.kind == DEFAULT_POLICY else []
        return list(dict.fromkeys([REWARD, *cost, *named]))


def completed(request: dict[str, Any]) -> dict[str, Any]:
    """A request as it was stored, with the defaults of fields that came to be after it."""
    return BanditBody.model_validate(request).request()


class BanditPatch(Body):
    """What of a bandit shall change, in the shape of the body that creates one. What is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"objective": {"reward": 1.0}, "policy": {"exploration_floor": 0.01}}]}
    )

    policy: dict[str, Any] | None = Field(
        None,
        description="Hyperparameters that `GET /v1/policies` marks `live`.",
        examples=[{"exploration_floor": 0.01}],
    )
    objective: Objective | None = Field(None, description='Weights of learned signals; null = `{"reward": 1}`.')
    budget: BudgetBody | None = Field(None, description="A new budget, whose mean begins now; null = none.")
    reward: dict[str, Any] | None = Field(
        None, description="`default` and `timeout_s`; a new time holds for later decisions.", examples=[{"default": 0.0}]
    )
    cooldown: CooldownBody | None = Field(None, description="Of arms whose calls fail; null = none.")
    session_ttl_s: SessionTime | None = Field(None, description="Seconds; null = sessions do not count.")
    arms: list[Any] | None = Field(None, description="Not live: `PUT` and `DELETE .../arms/{arm}` change arms.")
    prompt: dict[str, Any] | None = Field(None, description="Not live.")
    output: dict[str, Any] | None = Field(None, description="Not live.")
    prices_per: str | None = Field(None, description="Not live.")
    signals: list[str] | None = Field(None, description="Not live.")
    amend_until_s: float | None = Field(None, description="Not live.")
    seed: int | None = Field(None, description="Not live.")

    @field_validator("signals")
    @classmethod
    def _none_is_null(cls, signals: list[str] | None) -> list[str] | None:
        return signals or None

    @field_validator("reward")
    @classmethod
    def _check_reward(cls, reward: dict[str, Any] | None) -> dict[str, Any] | None:
        if reward is not None:
            timeout = {} if reward.get("default") is None else {"timeout_s": 1.0}  # the bandit has one
            RewardSpec.model_validate({**timeout, **reward})
            if reward.get("timeout_s") is None:  # as a configuration has it where the server's default holds
                reward = {name: value for name, value in reward.items() if name != "timeout_s"}
        return reward


# -- decisions and outcomes ------------------------------------------------------------------------------------------------------


class ArmChoice(OrString):
    """An arm that this decision may choose, with a price that holds for it alone."""

    name: str = Field(description="Name of the arm.", examples=["large"])
    price: Price | None = Field(None, description="Price of this one call; null = the arm's own.")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


Id = Annotated[str, StringConstraints(pattern=ID)]


def _sorted_json(value: dict[str, Any] | None) -> bytes | None:
    """The same for objects that mean the same, whatever the order of their fields."""
    return None if value is None else msgspec.json.encode(value, order="sorted")


def _given(younger: dict[str, Any]) -> list[dict[str, Any]]:
    """What a digest covers of fields that came after the first release: nothing where none of them was given."""
    found = {name: value for name, value in younger.items() if value is not None}
    return [found] if found else []


class DecisionBody(Body):
    """Ask for the next model to query."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "request-1", "prompt": {"vector": [0.1, -0.2, 0.3]}}]})

    prompt: Prompt | None = Field(None, description="A string, or an object with text, messages, vector or image.")
    arms: list[ArmChoice] | None = Field(
        None, min_length=1, max_length=MAX_ARMS, description="Restrict this decision to these arms; null = every active one."
    )
    episode: Id | None = Field(None, description="Continue this episode; null = a new one.")
    id: Id | None = Field(
        None, description="Your own id, for idempotent retries: the same id and body again is the same decision."
    )
    dry_run: bool = Field(False, description="Answer without logging: nothing is ever learned from it.")
    exclude: Annotated[list[ArmName], Field(max_length=MAX_ARMS)] | None = Field(
        None,
        description="Names of arms that must not be chosen, such as one that has just failed; unknown names are ignored. Holds "
        "for the `next` of its outcome, too.",
        examples=[["large"]],
    )
    max_price: Price | None = Field(
        None,
        description="Leaves out arms whose price for this decision is higher; null = any. Holds for the `next`, too.",
        examples=[0.01],
    )
    session: SessionName | None = Field(
        None,
        description="Decisions of one conversation: with `session_ttl_s` in the bandit, later ones get the arm of the first "
        "while it is active, allowed and not cooling down.",
        examples=["chat-4711"],
    )
    metadata: Metadata | None = Field(
        None, description="JSON object of up to 4 KiB: stored, returned, and never learned from.", examples=[{"team": "search"}]
    )

    @field_validator("arms")
    @classmethod
    def _arms_differ(cls, arms: list[ArmChoice] | None) -> list[ArmChoice] | None:
        if arms is not None and len({arm.name for arm in arms}) < len(arms):
            raise ValueError("an arm is named twice; name each once")
        return arms

    def canonical(self) -> list[Any]:
        """What tells two requests apart."""
        arms = None if self.arms is None else [[arm.name, arm.price] for arm in self.arms]
        younger = {
            "exclude": sorted({*self.exclude}) if self.exclude else None,
            "max_price": self.max_price,
            "session": self.session,
            "metadata": _sorted_json(self.metadata),
        }
        return [None if self.prompt is None else self.prompt.canonical(), arms, self.episode, *_given(younger)]


class DecisionBatch(Body):
    """Up to 1,024 decisions in one request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "decisions": [
                        {"id": "request-2", "prompt": {"vector": [0.4, 0.1, -0.3]}},
                        {"id": "request-3", "prompt": {"vector": [-0.2, 0.5, 0.2]}, "arms": ["large"]},
                    ]
                }
            ]
        }
    )

    decisions: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        description="Bodies of single decisions.",
        examples=[[{"prompt": {"vector": [0.4, 0.1, -0.3]}}]],
        json_schema_extra={"items": {"$ref": "#/components/schemas/DecisionBody"}},
    )


class SignalsBody(Body):
    """Numbers that came of a call."""

    reward: Reward | None = Field(
        None, description="How good the answer was; higher is better. Left out where the bandit has a scorer."
    )
    cost: Cost | None = Field(None, description="What the call really cost; null = the arm's price.")
    signals: Annotated[dict[SignalName, Reward], Field(max_length=MAX_POSTED_SIGNALS)] | None = Field(
        None,
        description="Further numbers by name, such as a latency; `reward` and `cost` may stand here instead. Learned are those "
        "that the bandit names; others are stored.",
        examples=[{"latency_s": 1.7}],
    )

    @field_validator("signals")
    @classmethod
    def _given_once(cls, signals: dict[str, float] | None, known: ValidationInfo) -> dict[str, float] | None:
        for name in (REWARD, COST):
            if name in (signals or {}) and known.data.get(name) is not None:
                raise ValueError(f"holds {name}, which also stands beside it; give it once")
        if signals and signals.get(COST, 0.0) < 0.0:
            raise ValueError("holds a cost that is less than 0; a cost is at least 0")
        return signals

    @model_validator(mode="after")
    def _take_signals(self) -> Self:
        """`reward` and `cost` become what they are, wherever they stand."""
        for name in (REWARD, COST):
            if self.signals and name in self.signals:
                setattr(self, name, self.signals.pop(name))
        return self


class Outcome(SignalsBody):
    """What came of a call."""

    output: Outputs | None = Field(None, description="What the model returned: one output or up to 256 samples.")
    reference: Content | None = Field(
        None, description="The real output for this prompt, for objectives and scorers that compare with it."
    )

    def contents(self) -> list[Any]:
        """What tells the contents of two outcomes apart."""
        outputs = None if self.output is None else [output.canonical() for output in self.output]
        return [outputs, None if self.reference is None else self.reference.canonical()]


class OutcomeBody(Outcome):
    """What came of a decision."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reward": 0.83, "cost": 0.0007}]})

    arm: str | None = Field(None, description="The arm that was really called, where you overrode the suggestion.")
    next: bool = Field(False, description="Also answer the next decision: the next attempt of the episode, or the next arm.")
    error: Annotated[str, StringConstraints(pattern=r"\S", max_length=MAX_ERROR)] | None = Field(
        None,
        description="Why the call failed. Without a reward nothing is learned of it; its cost is 0 unless it is posted.",
        examples=["429 Too Many Requests"],
    )
    metadata: Metadata | None = Field(
        None, description="JSON object of up to 4 KiB: stored, returned, and never learned from.", examples=[{"trace": "4711"}]
    )

    def canonical(self) -> list[Any]:
        """What tells two outcomes apart; `next` asks for more and is not part of it."""
        # younger than the others: it changes no digest where it is not given
        signals = [sorted(self.signals.items())] if self.signals else []
        younger = {"error": self.error, "metadata": _sorted_json(self.metadata)}
        return [self.reward, self.cost, *self.contents(), self.arm, *signals, *_given(younger)]


class AmendmentBody(SignalsBody):
    """Corrected or added signals of a decision that was closed. Values are absolute."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"signals": {"thumb": 1.0}, "reward": 0.2, "id": "amendment-1"}]})

    reward: Reward | None = Field(None, description="What the reward should have been.")
    cost: Cost | None = Field(None, description="What the call really cost.")
    signals: Annotated[dict[SignalName, Reward], Field(max_length=MAX_POSTED_SIGNALS)] | None = Field(
        None,
        description="Further numbers by name, that are wrong so far or missing; `reward` and `cost` may stand here instead.",
        examples=[{"thumb": 1.0}],
    )
    id: Id | None = Field(
        None,
        description="Makes the request repeatable: the same id is applied once. Without it, values that are known already change "
        "nothing.",
        examples=["amendment-1"],
    )

    @model_validator(mode="after")
    def _check_changes(self) -> Self:
        if self.reward is None and self.cost is None and not self.signals:
            raise ValueError("changes nothing; give `signals`, `reward` or `cost`")
        return self

    def values(self) -> dict[str, float]:
        """The new values, by the names of the signals."""
        return outcome_values(self.reward, self.cost, self.signals or {})

    def canonical(self) -> list[Any]:
        """What tells two amendments apart."""
        return sorted(self.values().items())


class OutcomeItem(OutcomeBody):
    """An outcome in a batch."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"decision": "request-2", "reward": 0.4}]})

    decision: Id = Field(description="The id of the decision.", examples=["request-2"])


class OutcomeBatch(Body):
    """Up to 1,024 outcomes in one request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"outcomes": [{"decision": "request-2", "reward": 0.4}, {"decision": "request-3", "reward": 0.9}]}]
        }
    )

    outcomes: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        description="Bodies of single outcomes, each with its `decision`.",
        examples=[[{"decision": "request-2", "reward": 0.4}]],
        json_schema_extra={"items": {"$ref": "#/components/schemas/OutcomeItem"}},
    )


def to_time(value: object) -> datetime:
    """A time with a zone, from RFC 3339."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None:
        raise ValueError('must be a time, e.g. "2026-01-31T12:00:00Z"')
    if time.tzinfo is None:
        raise ValueError('has no time zone; write "2026-01-31T12:00:00Z" for UTC')
    return time


Time = Annotated[
    datetime,
    BeforeValidator(to_time),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00Z"]}),
]


Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]


class ImportRow(Outcome):
    """An outcome of the past."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "row-1", "prompt": {"vector": [0.1, -0.2, 0.3]}, "arm": "small", "reward": 0.83, "propensity": 0.5}
            ]
        }
    )

    id: Id | None = Field(
        None, description="Your own id: learned once. null = the request's `id`, a slash, and the place of the row."
    )
    prompt: Prompt | None = Field(None, description="A string, or an object with text, messages, vector or image.")
    arm: str = Field(description="Name of the arm that was called.", examples=["small"])
    propensity: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = Field(
        None, description="The probability with which this arm was drawn; null = the one in `weights`, or not known."
    )
    weights: Annotated[dict[str, Annotated[FiniteFloat, Field(ge=0, le=1)]], Field(min_length=1, max_length=MAX_ARMS)] | None = (
        Field(
            None,
            description="The distribution over the arms that it was drawn from, by name (0 where left out); null = not known.",
            examples=[{"small": 0.5, "large": 0.5}],
        )
    )
    session: SessionName | None = Field(None, description="Stored, and never learned from.")
    metadata: Metadata | None = Field(None, description="JSON object of up to 4 KiB: stored, and never learned from.")
    at: Time | None = Field(None, description="When it was observed: stored, and never learned from.")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float] | None, known: ValidationInfo) -> dict[str, float] | None:
        if weights is None:
            return None
        if abs(sum(weights.values()) - 1.0) > WEIGHTS_OFF:
            raise ValueError("must sum to 1")
        drawn, propensity = weights.get(known.data.get("arm", ""), 0.0), known.data.get("propensity")
        if not drawn and "arm" in known.data:
            raise ValueError("give 0 to the arm that was called, so it was not drawn from them; leave them out")
        if propensity is not None and abs(propensity - drawn) > WEIGHTS_OFF:
            raise ValueError("give the arm another probability than `propensity`; leave one of the two out")
        return weights

    def canonical(self) -> list[Any]:
        """What tells two rows apart."""
        prompt = None if self.prompt is None else self.prompt.canonical()
        tables = [None if table is None else sorted(table.items()) for table in (self.signals, self.weights)]
        facts = [self.arm, self.reward, self.cost, self.propensity, self.session, _sorted_json(self.metadata), self.at]
        return [prompt, *self.contents(), *tables, *facts]


class CloneBody(Body):
    """A new bandit that has learned what this one has, under another policy."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "candidate", "policy": {"kind": "pak-ucb"}}]})

    name: Annotated[str, StringConstraints(pattern=NAME)] = Field(description="Of the new bandit.", examples=["candidate"])
    policy: AnyPolicy = Field(
        description="`kind` and its hyperparameters; everything else is as in the configuration of this bandit.",
        examples=[{"kind": "pak-ucb"}],
    )
    until: int | None = Field(
        None, ge=1, description="The last offset that it learns from; null = all that is there now.", examples=[4711]
    )


class ShadowBody(Body):
    """A policy that learns beside the one that decides."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"policy": {"kind": "pak-ucb"}, "from": "start"}]})

    policy: AnyPolicy = Field(description="`kind` and its hyperparameters.", examples=[{"kind": "pak-ucb"}])
    learns_from: Literal["now", "start"] | None = Field(
        None,
        alias="from",
        description="`start`: it learns the whole log first; `now`, as null: from the next outcome on.",
        examples=["start"],
    )


class PromotionBody(Body):
    """Which shadow shall decide, as it was looked at."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "promotion-1", "shadow_offset": 2}]})

    id: Id = Field(
        description="Your own id, for retries: the same id and body again exchanges nothing.", examples=["promotion-1"]
    )
    shadow_offset: int = Field(ge=1, description="The `offset` that the shadow was answered with.", examples=[2])


class ImportBody(Body):
    """Up to 1,024 outcomes of the past."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "january-1",
                    "rows": [
                        {"prompt": {"vector": [0.1, -0.2, 0.3]}, "arm": "small", "reward": 0.83},
                        {"prompt": {"vector": [0.4, 0.1, -0.3]}, "arm": "large", "reward": 0.4, "cost": 0.011},
                    ],
                }
            ]
        }
    )

    id: Id | None = Field(
        None, description="Of this request: rows without an id of their own are learned once under `<id>/<place of the row>`."
    )
    rows: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        description="Outcomes, in the order in which they are learned.",
        examples=[[{"id": "row-1", "prompt": {"vector": [0.4, 0.1, -0.3]}, "arm": "small", "reward": 0.83}]],
        json_schema_extra={"items": {"$ref": "#/components/schemas/ImportRow"}},
    )


MAX_EVALUATED = 64
"""Policies of one evaluation."""


EstimatorName = Literal["snips", "ips", "dr", "sndr", "dm"]


class EvaluationBody(Body):
    """What to evaluate on the log so far."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"policies": [{"kind": "greedy"}, {"frozen": 1}], "reward_range": [0.0, 1.0]}]}
    )

    id: Id | None = Field(None, description="Your own id: the same request again is the same evaluation.")
    policies: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_EVALUATED,
        description="Each a `policy` as in a bandit's body, which is replayed along the log; or `frozen` with an offset: the "
        "bandit's own as it was then, judged by later outcomes; or `shadow` with a name: its logged weights. Every fixed arm is "
        "evaluated as well.",
        examples=[[{"kind": "lin-ucb"}]],
    )
    since: Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="Count decisions from this offset, or this time (RFC 3339), on.", examples=["2026-01-01T00:00:00Z"]
    )
    estimators: list[EstimatorName] = Field(
        default_factory=lambda: list[EstimatorName](["snips"]),
        min_length=1,
        max_length=5,
        description="`value` and `interval` are of the first one; `estimates` has all.",
    )
    confidence: Annotated[FiniteFloat, Field(ge=0.5, le=0.9999)] = Field(0.95, description="Of the intervals.")
    reward_range: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None = Field(
        None, description="The lowest and the highest reward that is possible; needed for `anytime_interval`.", examples=[[0, 1]]
    )

    @field_validator("since", mode="before")
    @classmethod
    def _is_a_place(cls, since: Any) -> Any:
        # before the union is tried, whose errors are of each of its members
        is_offset = type(since) is int and since >= 0
        if not (since is None or is_offset or (isinstance(since, str) and len(since) <= 64)):
            raise ValueError("must be an offset of the log, 0 or more, or a time such as 2026-01-31T12:00:00Z")
        return since

    @field_validator("reward_range")
    @classmethod
    def _is_a_range(cls, low_high: list[float] | None) -> list[float] | None:
        if low_high is not None and not low_high[0] < low_high[1]:
            raise ValueError("must be the lowest and the highest reward that is possible, in this order")
        return low_high


class Pair(Body):
    """A prompt with its real output."""

    prompt: Prompt = Field(
        description="A string, or an object with text, messages, vector or image.",
        examples=["Translate this to French: good morning"],
    )
    output: Content = Field(description="The real output for this prompt.", examples=["bonjour"])


class MomentsBody(Body):
    """Reference moments, set at once."""

    mean: Annotated[list[FiniteFloat], FailFast()] = Field(
        min_length=1, max_length=MAX_MOMENTS_DIM, description="As many numbers as an output has.", examples=[[0.0, 1.0]]
    )
    covariance: Annotated[list[Annotated[list[FiniteFloat], FailFast()]], FailFast()] = Field(
        min_length=1,
        max_length=MAX_MOMENTS_DIM,
        description="Rows of the covariance matrix, divided by count - 1.",
        examples=[[[1.0, 0.2], [0.2, 1.0]]],
    )
    count: int = Field(ge=2, le=2**53, description="Samples behind these moments.", examples=[1000])

    @model_validator(mode="after")
    def _square(self) -> Self:
        if any(len(row) != len(self.mean) for row in self.covariance) or len(self.covariance) != len(self.mean):
            raise ValueError(f"covariance must be {len(self.mean)} x {len(self.mean)}, as mean has {len(self.mean)} numbers")
        return self


class ReferenceBody(Body):
    """Reference material: samples, pairs, or moments. Texts and images are embedded like outputs."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"outputs": [{"vector": [0.1, -0.2, 0.3]}, {"vector": [0.2, 0.1, -0.1]}]}]}
    )

    outputs: list[Content] | None = Field(None, min_length=1, max_length=MAX_BATCH, description="Reference samples.")
    pairs: list[Pair] | None = Field(None, min_length=1, max_length=MAX_BATCH, description="Prompts with their real outputs.")
    moments: MomentsBody | None = Field(None, description="Mean, covariance and count.")
    id: Id | None = Field(
        None,
        description="Your own id, for idempotent retries: the same id and body again is not learned again.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(part is not None for part in (self.outputs, self.pairs, self.moments)) != 1:
            raise ValueError("give exactly one of outputs, pairs, moments")
        return self

    def canonical(self) -> list[Any]:
        """What tells two requests apart."""
        outputs = None if self.outputs is None else [output.canonical() for output in self.outputs]
        pairs = None if self.pairs is None else [[pair.prompt.canonical(), pair.output.canonical()] for pair in self.pairs]
        moments = None if self.moments is None else [self.moments.mean, self.moments.covariance, self.moments.count]
        return [outputs, pairs, moments]


def _examples() -> dict[str, Any]:
    models = [model for model in globals().values() if isinstance(model, type) and issubclass(model, BaseModel)]
    fields = ((name, field) for model in models for name, field in model.model_fields.items() if field.is_required())
    return {name: field.examples[0] for name, field in fields if field.examples} | {"kind": "pak-ucb"}


EXAMPLES = _examples()
"""Of every field that must be sent: what an error shows where it is missing."""
