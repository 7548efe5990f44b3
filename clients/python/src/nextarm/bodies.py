"""What the service takes: shapes of the keyword arguments of the client's methods. The service checks them and names the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypeAlias, TypedDict

Numbers: TypeAlias = Sequence[float] | Any
"""A vector: numbers, an array of numpy or torch, or base64 of little-endian float32."""


class Message(TypedDict, total=False):
    """A message as chat APIs have it."""

    role: Required[str]
    content: str | Sequence[Mapping[str, Any]] | None


class PromptObject(TypedDict, total=False):
    """A prompt: exactly one of these. image: base64 of a PNG, JPEG or WebP file."""

    text: str
    messages: Sequence[Message] | Sequence[Mapping[str, Any]]
    vector: Numbers
    image: str


class OutputObject(TypedDict, total=False):
    """An output: exactly one of these."""

    text: str
    vector: Numbers
    image: str
    probabilities: Numbers


Prompt: TypeAlias = str | PromptObject | Mapping[str, Any]
"""A text, or an object."""
Output: TypeAlias = str | OutputObject | Mapping[str, Any]
"""A text, or an object."""


class ArmChange(TypedDict, total=False):
    """A change of an arm; what is left out stays as it is."""

    price: float
    metadata: Mapping[str, Any]


class ArmSpec(ArmChange, total=False):
    """An arm of a new bandit."""

    name: Required[str]


class ArmChoice(TypedDict, total=False):
    """An arm that one decision may choose. price: of this one call."""

    name: Required[str]
    price: float | None


class ModelChoice(TypedDict, total=False):
    """Which model of an embedder."""

    model: str | None
    checkpoint: str | None


class EmbedderSpec(ModelChoice, total=False):
    """How outputs are embedded."""

    embedder: str
    dim: int | None
    classes: Sequence[str] | None
    takes: Literal["text", "image", "both"] | None


class PromptSpec(EmbedderSpec, total=False):
    """How prompts are embedded. reads: of messages.  keep: of texts longer than the embedder reads."""

    reads: Literal["last_user", "conversation"] | None
    keep: Literal["start", "end", "both"] | None


class RewardSpec(TypedDict, total=False):
    """Where rewards come from."""

    source: str
    override: bool
    expected: str | None
    pattern: str | None
    fences: str | None
    target: int | None
    options: Mapping[str, Any] | None
    default: float | None
    timeout_s: float | None


class BudgetSpec(TypedDict):
    """The mean of one signal per decision that is held."""

    signal: str
    per_decision: float


class CooldownSpec(TypedDict):
    """After how many errors, within how many seconds, an arm is left out of decisions, and for how many."""

    errors: int
    within_s: float
    for_s: float


class BanditBody(TypedDict, total=False):
    """A new bandit. policy: `kind` and hyperparameters; left out, it is `auto`."""

    policy: Mapping[str, Any]
    arms: Required[Sequence[ArmSpec] | Sequence[Mapping[str, Any]]]
    prompt: PromptSpec | None
    output: EmbedderSpec | None
    reward: RewardSpec
    objective: Mapping[str, float] | None
    budget: BudgetSpec | None
    prices_per: Literal["call", "outcome"] | None
    signals: Sequence[str] | None
    amend_until_s: float | None
    cooldown: CooldownSpec | None
    session_ttl_s: float | None
    seed: int | None


class BanditChanges(TypedDict, total=False):
    """What of a bandit shall change; what is left out stays as it is, `None` takes an objective or a budget away."""

    policy: Mapping[str, Any] | None
    objective: Mapping[str, float] | None
    budget: BudgetSpec | None
    reward: RewardSpec | None
    cooldown: CooldownSpec | None
    session_ttl_s: float | None


class DecisionBody(TypedDict, total=False):
    """A question for the next model. id: your own; left out, the client makes one, so that a retry is the same decision.
    exclude, max_price: leave arms out, by name and by price.  session: of one conversation, which may keep its arm.
    metadata: stored, and never learned from.
    """

    prompt: Prompt | None
    arms: Sequence[str | ArmChoice] | None
    episode: str | None
    id: str | None
    dry_run: bool
    exclude: Sequence[str] | None
    max_price: float | None
    session: str | None
    metadata: Mapping[str, Any] | None


class DecisionRequest(DecisionBody, total=False):
    """A question with what the client does while the service is away."""

    fallback: str | None


class OutcomeBody(TypedDict, total=False):
    """What came of a decision. arm: the one that was really called, where you overrode the suggestion.
    error: why the call failed.  metadata: stored, and never learned from.
    """

    reward: float | None
    cost: float | None
    signals: Mapping[str, float] | None
    output: Output | Sequence[Output] | None
    reference: Output | None
    arm: str | None
    next: bool
    error: str | None
    metadata: Mapping[str, Any] | None


class AmendmentBody(TypedDict, total=False):
    """Corrected or added signals of a decision that was closed."""

    reward: float | None
    cost: float | None
    signals: Mapping[str, float] | None
    id: str | None


class OutcomeItem(OutcomeBody, total=False):
    """An outcome in a batch."""

    decision: Required[str]


class ImportRow(TypedDict, total=False):
    """An outcome of the past. propensity: the probability with which the arm was drawn.  at: RFC 3339, or a datetime."""

    id: str | None
    arm: Required[str]
    reward: float | None
    cost: float | None
    signals: Mapping[str, float] | None
    output: Output | Sequence[Output] | None
    reference: Output | None
    prompt: Prompt | None
    propensity: float | None
    weights: Mapping[str, float] | None
    session: str | None
    metadata: Mapping[str, Any] | None
    at: str | datetime | None


class EvaluationBody(TypedDict, total=False):
    """What to evaluate on the log. policies: with `kind`, `frozen` or `shadow`.  since: an offset, or a time (RFC 3339)."""

    id: str | None
    policies: Sequence[Mapping[str, Any]]
    since: int | str | datetime | None
    estimators: Sequence[Literal["snips", "ips", "dr", "sndr", "dm"]]
    confidence: float
    reward_range: Sequence[float] | None


class ReferencePair(TypedDict):
    """A prompt with its real output."""

    prompt: Prompt
    output: Output


class Moments(TypedDict):
    """Mean and covariance of reference outputs, and how many there were."""

    mean: Numbers
    covariance: Any
    count: int


class ReferenceBody(TypedDict, total=False):
    """Reference material: exactly one of outputs, pairs and moments."""

    outputs: Sequence[Output] | None
    pairs: Sequence[ReferencePair] | None
    moments: Moments | None
    id: str | None
