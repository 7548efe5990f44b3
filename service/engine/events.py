"""The events of a bandit's log and their codec: typed structs as JSON, vectors as base64 of little-endian float32.

    created . configured . arm_added . arm_changed . arm_retired . reference_added . session_begun . decided . partial . observed
    expired . cancelled . amended . imported . cloned
    shadow_created . shadow_deleted . shadow_promoted

`GET .../log` streams the log's bytes, byte for byte. An event says what happened, and with which numbers at that moment: weights,
scores, a surprise. What else follows from it is derived.
JSON and not safetensors, because then the log, the export and the stream are one format, and any tool can read it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor

from bandits.types import empty, empty_rows

E = TypeVar("E", bound="Event")

VERSION = 1

FIRST = 1
"""The number of a bandit's first policy. A policy is named by the offset of the event that it came with."""

utc_now: Callable[[], datetime] = partial(datetime.now, UTC)
"""The clock of this machine."""


class UnreadableEvent(Exception):
    """Bytes in a log that are not an event of a known version."""


class NewerEvent(UnreadableEvent):
    """An event that only a newer version of nextarm can read: nothing is damaged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"written by a newer version of nextarm ({what}); upgrade this server")


class Matrix(msgspec.Struct, frozen=True):
    """Rows of float32: `data` is rows * columns numbers, row-major, little-endian."""

    rows: int
    columns: int
    data: bytes

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 0 or 4 * self.rows * self.columns != len(self.data):
            raise ValueError(f"{len(self.data)} bytes are not {self.rows} x {self.columns} float32")

    @staticmethod
    def of(array: np.ndarray) -> Matrix:
        """From (n, e) numbers."""
        return Matrix(array.shape[0], array.shape[1], np.ascontiguousarray(array, dtype="<f4").tobytes())

    def tensor(self) -> Tensor:
        """(n, e) float64, aligned. Do not write into it: all that hold nothing share one."""
        if self.rows == self.columns == 0:
            return empty_rows()
        flat = np.frombuffer(self.data, dtype="<f4").reshape(self.rows, self.columns)
        return torch.from_numpy(flat.astype(np.float64))


EMPTY = Matrix(0, 0, b"")


def vector_bytes(vector: np.ndarray) -> bytes:
    """A vector as the log keeps it."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def vector_tensor(data: bytes) -> Tensor:
    """(d,) float64 from what the log keeps. Do not write into it: all that hold nothing share one."""
    if not data:
        return empty()
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float64))


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """What all events share: when it was accepted. The only clock that the service knows is this field.
    cloned: in a clone, the offset of the event in the log that it was copied from.
    """

    at: datetime
    v: int = VERSION
    cloned: int | msgspec.UnsetType = msgspec.UNSET


def _check_finite(*numbers: float) -> None:
    """JSON has no NaN and no infinity: the encoder writes null, and a log with such an event could not be read again."""
    if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):  # a sum is quicker, and may overflow
        raise ValueError("an event holds numbers that are finite")


class NewArm(msgspec.Struct, frozen=True, kw_only=True):
    """An arm of the first event."""

    name: str
    price: float = 0.0
    metadata: dict[str, Any] = {}


class BudgetSet(msgspec.Struct, frozen=True, kw_only=True):
    """What one signal may be per decision in the mean."""

    signal: str
    per_decision: float

    def __post_init__(self) -> None:
        _check_finite(self.per_decision)


class CooldownSet(msgspec.Struct, frozen=True, kw_only=True):
    """When an arm is left out of decisions for a while: after so many outcomes with an error within a time."""

    errors: int
    within_s: float
    for_s: float

    def __post_init__(self) -> None:
        _check_finite(self.within_s, self.for_s)


class CloneOf(msgspec.Struct, frozen=True, kw_only=True):
    """What a clone has learned from: a bandit, the id of its log, and the last offset that was copied."""

    bandit: str
    log: str
    until: int


class Created(Event, frozen=True, kw_only=True, tag="created"):
    """The bandit, resolved: everything that a replay needs, and the request as it was sent (to answer a repeated one).

    signals: names of those that are learned, in order; unset = the reward alone.
    objective, budget, prices_per, amend_until_s, cooldown, session_ttl_s: as in the request; unset where they were not given.
    clone_of: unset where it was begun with nothing.
    layout: of the sums of its states (`bandits.types.LAYOUT`), since a digest depends on it; unset = 1.

    prompt_takes, output_takes: `text`, `image` or `both`, where an embedder reads images; unset for any other, and in logs that
    are older than the distinction.
    """

    bandit: str
    tenant: str
    request: dict[str, Any]
    policy: str
    hyperparameters: dict[str, Any]
    arms: list[NewArm]
    seed: int
    fingerprint: str
    dim: int
    prompt_embedder: str
    prompt_version: str
    output_dim: int
    output_embedder: str
    output_version: str
    reward_source: str
    default_reward: float | None
    timeout_s: float
    prompt_takes: Literal["text", "image", "both"] | msgspec.UnsetType = msgspec.UNSET
    output_takes: Literal["text", "image", "both"] | msgspec.UnsetType = msgspec.UNSET
    signals: list[str] | msgspec.UnsetType = msgspec.UNSET
    objective: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    budget: BudgetSet | msgspec.UnsetType = msgspec.UNSET
    prices_per: Literal["call", "outcome"] | msgspec.UnsetType = msgspec.UNSET
    clone_of: CloneOf | msgspec.UnsetType = msgspec.UNSET
    amend_until_s: float | msgspec.UnsetType = msgspec.UNSET
    cooldown: CooldownSet | msgspec.UnsetType = msgspec.UNSET
    session_ttl_s: float | msgspec.UnsetType = msgspec.UNSET
    layout: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of the signals that are learned."""
        return ("reward",) if self.signals is msgspec.UNSET else tuple(self.signals)


class ArmAdded(Event, frozen=True, kw_only=True, tag="arm_added"):
    """A new arm, at the next index."""

    name: str
    price: float
    metadata: dict[str, Any]


class ArmChanged(Event, frozen=True, kw_only=True, tag="arm_changed"):
    """New price and metadata; a retired arm is back."""

    arm: int
    price: float
    metadata: dict[str, Any]


class ArmRetired(Event, frozen=True, kw_only=True, tag="arm_retired"):
    """The arm is no longer chosen; its statistic stays."""

    arm: int


class MomentsGiven(msgspec.Struct, frozen=True, kw_only=True):
    """Reference moments in float64 (base64): mean (e,), covariance (e, e) row-major."""

    mean: bytes
    covariance: bytes
    count: int


class Configured(Event, frozen=True, kw_only=True, tag="configured"):
    """Values of the configuration that changed; unset = as before. hyperparameters: those that changed, by name.
    objective, budget, cooldown, session_ttl_s: null = the reward alone, none, none, none.  timeout_s: of later decisions.
    """

    hyperparameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    objective: dict[str, float] | msgspec.UnsetType | None = msgspec.UNSET
    budget: BudgetSet | msgspec.UnsetType | None = msgspec.UNSET
    default_reward: float | msgspec.UnsetType | None = msgspec.UNSET
    timeout_s: float | msgspec.UnsetType = msgspec.UNSET
    cooldown: CooldownSet | msgspec.UnsetType | None = msgspec.UNSET
    session_ttl_s: float | msgspec.UnsetType | None = msgspec.UNSET


class ReferenceAdded(Event, frozen=True, kw_only=True, tag="reference_added"):
    """Reference samples, pairs (with prompts), or moments. id, body: the client's id and the digest of the request, or unset."""

    id: str | msgspec.UnsetType = msgspec.UNSET
    body: str | msgspec.UnsetType = msgspec.UNSET
    outputs: Matrix = EMPTY
    prompts: Matrix = EMPTY
    moments: MomentsGiven | None = None


class ShadowCreated(Event, frozen=True, kw_only=True, tag="shadow_created"):
    """A policy that learns what the bandit's own learns, and decides nothing. Its offset is the number of this policy.
    learns_from: the first outcome that it learns: the next one, or that of the log's start.
    """

    shadow: str
    policy: str
    hyperparameters: dict[str, Any]
    fingerprint: str
    learns_from: Literal["now", "start"]


class ShadowDeleted(Event, frozen=True, kw_only=True, tag="shadow_deleted"):
    """The shadow is gone, with what it learned."""

    shadow: str


class ShadowPromoted(Event, frozen=True, kw_only=True, tag="shadow_promoted"):
    """From here on the policy of the shadow decides, and the policy that decided is the shadow of this name.
    id: the client's.  shadow_offset: of the event that the shadow was created or last exchanged by.
    """

    id: str
    shadow: str
    shadow_offset: int


class ShadowWeights(msgspec.Struct, frozen=True):
    """What a shadow would have drawn from. policy: its number. weights: per arm index."""

    policy: int
    weights: list[float]


class Decided(Event, frozen=True, kw_only=True, tag="decided"):
    """A decision. weights and scores are per arm index; null = not scored. arm = -1 is a stop, which is closed at once.
    present: the arms that answers show, where others are gone (retired, with nothing open); unset = all.
    prepared: outcomes behind the newest preparation of the policy; unset where that does not matter.
    multipliers, running: of the signal that has a budget, the weight that was subtracted and its running mean; unset without.
    timeout_s: seconds after which it expires, where that is not the first event's.
    policy: number of the policy that decided; unset = the first one.
    shadows: by name, of those that were quick enough; unset = none.
    exclude, max_price: as they were asked for, which a decision that follows the outcome heeds, too; unset = not given.
    cooldown_ignored: every arm that it might choose was cooling down; unset = not so.
    session: as it was asked for; unset = none.  sticky: the arm is that of the session, which the decision `chosen_by` has drawn;
    propensity is null, and the weights say what was chosen.
    metadata: stored, and never learned from.
    """

    id: str
    arm: int
    propensity: float | None
    weights: list[float]
    scores: dict[str, list[float | None]]
    allowed: list[int]
    price: float
    features: bytes
    episode: str
    attempt: int
    body: str
    present: list[int] | msgspec.UnsetType = msgspec.UNSET
    prepared: int | msgspec.UnsetType = msgspec.UNSET
    multipliers: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    running: dict[str, float | None] | msgspec.UnsetType = msgspec.UNSET
    timeout_s: float | msgspec.UnsetType = msgspec.UNSET
    policy: int | msgspec.UnsetType = msgspec.UNSET
    shadows: dict[str, ShadowWeights] | msgspec.UnsetType = msgspec.UNSET
    exclude: list[str] | msgspec.UnsetType = msgspec.UNSET
    max_price: float | msgspec.UnsetType = msgspec.UNSET
    cooldown_ignored: bool | msgspec.UnsetType = msgspec.UNSET
    session: str | msgspec.UnsetType = msgspec.UNSET
    sticky: bool | msgspec.UnsetType = msgspec.UNSET
    chosen_by: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        propensity = 0.0 if self.propensity is None else self.propensity
        max_price = 0.0 if self.max_price is msgspec.UNSET else self.max_price
        _check_finite(self.price, propensity, max_price, *self.weights)
        for shadow in () if self.shadows is msgspec.UNSET else self.shadows.values():
            _check_finite(*shadow.weights)

    @property
    def estimates(self) -> Estimates:
        """Of the reward."""
        return Estimates(self.scores.get("estimate"), self.scores.get("signals.reward"))


class Estimates(msgspec.Struct, frozen=True):
    """The scores of a decision that estimate its reward, per arm index."""

    estimate: list[float | None] | None = None
    reward: list[float | None] | None = msgspec.field(default=None, name="signals.reward")


_weights_decoder = msgspec.json.Decoder(list[float])
_scores_decoder = msgspec.json.Decoder(dict[str, list[float | None]])
_estimates_decoder = msgspec.json.Decoder(Estimates)
_shadows_decoder = msgspec.json.Decoder(dict[str, ShadowWeights])


class FoldedDecision(Event, frozen=True, kw_only=True, tag="decided"):
    """A `Decided` as folding reads it: fields that only few folds look at stay JSON until then, and those that none looks at are
    passed over. The process that wrote the event has checked them, and the store sees to it that they are the same bytes.
    """

    id: str
    arm: int
    propensity: float | None
    weights_json: msgspec.Raw = msgspec.field(name="weights")
    scores_json: msgspec.Raw = msgspec.field(name="scores")
    price: float
    features: bytes
    episode: str
    timeout_s: float | msgspec.UnsetType = msgspec.UNSET
    policy: int | msgspec.UnsetType = msgspec.UNSET
    shadows_json: msgspec.Raw | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="shadows")
    session: str | msgspec.UnsetType = msgspec.UNSET
    sticky: bool | msgspec.UnsetType = msgspec.UNSET
    chosen_by: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def weights(self) -> list[float]:
        """As of `Decided`."""
        return _weights_decoder.decode(self.weights_json)

    @property
    def scores(self) -> dict[str, list[float | None]]:
        """As of `Decided`."""
        return _scores_decoder.decode(self.scores_json)

    @property
    def estimates(self) -> Estimates:
        """Of the reward."""
        return _estimates_decoder.decode(self.scores_json)

    @property
    def shadows(self) -> dict[str, ShadowWeights] | msgspec.UnsetType:
        """As of `Decided`."""
        return msgspec.UNSET if self.shadows_json is msgspec.UNSET else _shadows_decoder.decode(self.shadows_json)


AnyDecision = Decided | FoldedDecision


def decided_by(decision: AnyDecision) -> int:
    """The number of the policy that decided."""
    return FIRST if decision.policy is msgspec.UNSET else decision.policy


def weights_of(decision: AnyDecision, policy: int) -> list[float] | None:
    """The distribution of the policy of this number, whether it decided or was a shadow; None where it is not in the log."""
    if policy == decided_by(decision):
        return decision.weights
    shadows = decision.shadows
    known = () if shadows is msgspec.UNSET else shadows.values()
    return next((shadow.weights for shadow in known if shadow.policy == policy), None)


class SessionBegun(Event, frozen=True, kw_only=True, tag="session_begun"):
    """The first decision of a session has chosen its arm; of several at once, the first in the log.
    generation: 1, 2, ... of one session.  decision: as it is logged next, without its features; it is here so that a process that
    ends in between leaves nothing unknown.
    """

    session: str
    generation: int
    decision: Decided


class Partial(Event, frozen=True, kw_only=True, tag="partial"):
    """What came of a decision before the reward that its policy needs. The decision stays open; what is given here is learned.
    n: 1, 2, ... of one decision.  cost, signals: those that came with this event; unset = none.  Behind the event that closes the
    decision it counts for nothing: two replicas were asked at the same time.
    """

    id: str
    n: int
    arm: int
    cost: float | msgspec.UnsetType = msgspec.UNSET
    signals: dict[str, float] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        _check_finite(*self.values.values())

    @property
    def values(self) -> dict[str, float]:
        """Signals by name."""
        values = {} if self.signals is msgspec.UNSET else dict(self.signals)
        return values if self.cost is msgspec.UNSET else values | {"cost": self.cost}


class Observed(Event, frozen=True, kw_only=True, tag="observed"):
    """The outcome of a decision. propensity is null where the client played another arm than the suggested one. source: who gave
    the reward where the bandit has a scorer: its name, or `client`; unset where every reward is posted.
    signals: others than reward and cost; unset = none.  cost_posted: whether the client gave the cost; unset where only its sum
    counts.  surprise: of the reward, in the unit of the policy, where drift is watched; null = nothing was expected.
    surprises: those of shadows, by the number of their policy; unset = no shadow watches drift.  metadata: as of `Decided`.
    price: of the arm that was played, where that is not the decision's and costs are learned.
    error: why the call failed; unset = it did not. Its cost is 0 where none was posted.
    """

    id: str
    arm: int
    reward: float | None
    cost: float
    propensity: float | None
    source: str | msgspec.UnsetType = msgspec.UNSET
    signals: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    cost_posted: bool | msgspec.UnsetType = msgspec.UNSET
    surprise: float | msgspec.UnsetType | None = msgspec.UNSET
    surprises: dict[str, float | None] | msgspec.UnsetType = msgspec.UNSET
    price: float | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    output: Matrix = EMPTY
    reference: Matrix = EMPTY
    body: str

    def __post_init__(self) -> None:
        signals = () if self.signals is msgspec.UNSET else self.signals.values()
        _check_finite(self.cost, self.reward or 0.0, *signals)

    @property
    def is_failure(self) -> bool:
        """The call failed and says nothing of the quality of its arm: nothing is learned."""
        return self.error is not msgspec.UNSET and self.reward is None


class Expired(Event, frozen=True, kw_only=True, tag="expired"):
    """No outcome came in time. With a reward it is learned as that; without one the decision is just gone."""

    id: str
    reward: float | None

    def __post_init__(self) -> None:
        _check_finite(self.reward or 0.0)


class Cancelled(Event, frozen=True, kw_only=True, tag="cancelled"):
    """The client withdrew the decision; nothing is learned."""

    id: str


class Imported(Event, frozen=True, kw_only=True, tag="imported"):
    """An outcome without a decision of this bandit: history, or what a clone has copied. It is learned like any other, and left
    out of tallies, budgets and the watch on drift.
    id: of the row.  price: of the arm at that time.  features: of the prompt.  happened_at: when it was observed elsewhere.
    propensity, weights: what the arm was drawn with, and from, per arm index; unset = not known.
    source, signals, cost_posted: as of `Observed`.  session, metadata: stored, and never learned from.
    """

    id: str
    arm: int
    reward: float | None
    cost: float
    price: float
    features: bytes
    propensity: float | msgspec.UnsetType = msgspec.UNSET
    weights: list[float] | msgspec.UnsetType = msgspec.UNSET
    source: str | msgspec.UnsetType = msgspec.UNSET
    signals: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    cost_posted: bool | msgspec.UnsetType = msgspec.UNSET
    session: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    happened_at: datetime | msgspec.UnsetType = msgspec.UNSET
    output: Matrix = EMPTY
    reference: Matrix = EMPTY
    body: str

    def __post_init__(self) -> None:
        signals = () if self.signals is msgspec.UNSET else self.signals.values()
        weights = () if self.weights is msgspec.UNSET else self.weights
        propensity = 1.0 if self.propensity is msgspec.UNSET else self.propensity
        _check_finite(self.cost, self.price, self.reward or 0.0, propensity, *signals, *weights)


class Cloned(Event, frozen=True, kw_only=True, tag="cloned"):
    """The copy is complete: this clone decides from now on. learned: outcomes that were copied."""

    learned: int


class Amended(Event, frozen=True, kw_only=True, tag="amended"):
    """Values of a closed decision that were corrected or added.

    n: 1, 2, ... of one decision.  outcome: the offset of the event that closed it.  amendment, body: the client's id, if it gave
    one, and the digest of the request.
    reward, cost, signals: the whole outcome, as it is from here on.  before: those that this event changed, as they were; null =
    missing.  learned: offsets of the events that brought those values, where that is not `outcome`.
    counts: whether this outcome is among those of its arm: `before` this event, from `now` on, or `no`: it has no reward.
    held: the offset of the newest earlier event of this decision that something was learned of; 0 = none.
    arm, propensity, price, features: of the decision and its outcome, as they were then.  has_output: it came with an output;
    unset = it did not.
    spent: of a failed call that does not count yet, the cost that its arm was charged with; unset = of any other outcome.
    assumed: what an outcome that counts was charged with before its first cost, where that is another number than the price.
    session: of the decision; unset = none.  session_propensity: where it got the arm of its session, that of the decision that
    has drawn it; unset = it did not, or that is not known any more.
    """

    id: str
    n: int
    outcome: int
    amendment: str | msgspec.UnsetType = msgspec.UNSET
    body: str
    reward: float | None
    cost: float | None
    signals: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    before: dict[str, float | None]
    learned: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    counts: Literal["before", "now", "no"]
    held: int
    has_output: bool | msgspec.UnsetType = msgspec.UNSET
    spent: float | msgspec.UnsetType = msgspec.UNSET
    assumed: float | msgspec.UnsetType = msgspec.UNSET
    arm: int
    propensity: float | None
    price: float
    features: bytes
    session: str | msgspec.UnsetType = msgspec.UNSET
    session_propensity: float | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        _check_finite(0.0 if self.session_propensity is msgspec.UNSET else self.session_propensity)
        _check_finite(self.price, *self.values.values(), *(value for value in self.before.values() if value is not None))
        if not set(self.before) <= set(self.values):
            raise ValueError("an amendment gives every signal that it changes")

    @property
    def values(self) -> dict[str, float]:
        """Signals by name, as they are from here on."""
        return outcome_values(self.reward, self.cost, self.signals)

    @property
    def drawn_with(self) -> float | None:
        """The probability with which the arm was drawn, here or for the session; None where it is not known."""
        return self.session_propensity or None if self.propensity is None else self.propensity

    @property
    def charged(self) -> float:
        """What an outcome that counts was charged with while no cost of it was known."""
        return self.price if self.assumed is msgspec.UNSET else self.assumed


def outcome_values(reward: float | None, cost: float | None, signals: dict[str, float] | msgspec.UnsetType) -> dict[str, float]:
    """What is known of an outcome, by the names of the signals."""
    values = {} if signals is msgspec.UNSET else dict(signals)
    if reward is not None:
        values["reward"] = reward
    if cost is not None:
        values["cost"] = cost
    return values


AnyEvent = (
    Created
    | Configured
    | ArmAdded
    | ArmChanged
    | ArmRetired
    | ReferenceAdded
    | Decided
    | SessionBegun
    | Partial
    | Observed
    | Expired
    | Cancelled
    | Amended
    | Imported
    | Cloned
    | ShadowCreated
    | ShadowDeleted
    | ShadowPromoted
)

FoldedEvent = AnyEvent | FoldedDecision
"""What folding takes: the events of the log, decisions as they were made here or as they are read."""

KINDS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
"""How events of this version are tagged."""
FIELDS = frozenset({"offset", "event"}.union(*(kind.__struct_encode_fields__ for kind in get_args(AnyEvent))))
"""What a line of the log may have."""
VECTORS = frozenset({"features", "output", "outputs", "reference", "prompts", "moments"})
"""Fields of vectors and matrices: nearly all of the bytes of a log."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_fold_decoder: msgspec.json.Decoder[FoldedEvent] = msgspec.json.Decoder(
    Union[FoldedDecision, *(kind for kind in get_args(AnyEvent) if kind is not Decided)]
)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(event: AnyEvent) -> bytes:
    """One line of JSON without a line break."""
    return _encoder.encode(event)


def decode(payload: bytes) -> AnyEvent:
    """The event, or `UnreadableEvent` with the reason."""
    return _decoded(_decoder, payload)


def decode_to_fold(payload: bytes) -> FoldedEvent:
    """`decode`, of what folding needs."""
    return _decoded(_fold_decoder, payload)


def _decoded(decoder: msgspec.json.Decoder[E], payload: bytes) -> E:
    try:
        event = decoder.decode(payload)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        _check_known(payload)
        raise UnreadableEvent(str(error)) from error
    if event.v > VERSION:
        raise NewerEvent(f"event version {event.v}, this build reads {VERSION}")
    if event.v != VERSION:
        raise UnreadableEvent(f"event version {event.v}, this build reads {VERSION}")
    return event


class _Header(msgspec.Struct):
    """What events of every version have."""

    event: str
    v: int = VERSION


_header_decoder = msgspec.json.Decoder(_Header)


def _check_known(payload: bytes) -> None:
    """Raise `NewerEvent` for an event of a kind or version that came to be after this build."""
    try:
        header = _header_decoder.decode(payload)
    except msgspec.DecodeError:
        return
    if header.v > VERSION:
        raise NewerEvent(f"event version {header.v}, this build reads {VERSION}")
    if header.event not in KINDS:
        raise NewerEvent(f"the event {header.event[:64]!r}")


def body_digest(*parts: Any) -> str:
    """A digest of a request's content, as events keep it in `body`: a repeated request has the same."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def line(offset: int, payload: bytes) -> bytes:
    """An event as a line of NDJSON, its offset first; nothing is parsed."""
    return b'{"offset":%d,%s\n' % (offset, payload[1:])


def selected_line(offset: int, payload: bytes, *, fields: frozenset[str] = FIELDS, vectors: bool = True) -> bytes:
    """`line` with some fields alone, byte for byte as they are stored; `offset` and `event` are always there.

    vectors: whether those of `VECTORS` are among them.
    """
    wanted = {*fields, "event"} - (frozenset() if vectors else VECTORS)
    kept = {name: value for name, value in _fields_decoder.decode(payload).items() if name in wanted}
    return line(offset, _encoder.encode(kept))


def kind_of(payload: bytes) -> str:
    """The kind of an encoded event."""
    return _header_decoder.decode(payload).event


def decided_key(decision: str) -> str:
    """Under this key a log holds at most one `decided` of an id."""
    return f"{decision}/decided"


def closed_key(decision: str) -> str:
    """Under this key a log holds at most one of observed, expired, cancelled: the first closes the decision."""
    return f"{decision}/closed"


def session_key(session: str, generation: int) -> str:
    """Under this key a log holds at most one `session_begun` of a generation. (Two slashes: a decision may be called so.)"""
    return f"session//{session}/{generation}"


def partial_key(decision: str, n: int) -> str:
    """Under this key a log holds at most one n-th `partial` of a decision."""
    return f"{decision}/partial/{n}"


def amended_key(decision: str, n: int) -> str:
    """Under this key a log holds at most one n-th `amended` of a decision: of two at once, one has to look again."""
    return f"{decision}/amended/{n}"


CLONED = "clone/cloned"
"""The key of the event that ends a copy."""


def clone_key(offset: int) -> str:
    """Under this key a clone holds the copy of the event at this offset of its source."""
    return f"clone/{offset}"


def import_key(row: str) -> str:
    """Under this key a log holds at most one `imported` of a row's id. (Two slashes: a decision may be called `imported`.)"""
    return f"imported//{row}"


def key_of(event: AnyEvent) -> str:
    """The key of an event that makes or closes a decision, or has an id of its own; the log holds one event under it. Others get
    theirs from callers.
    """
    if event.cloned is not msgspec.UNSET:
        return clone_key(event.cloned)
    match event:
        case Imported():
            return import_key(event.id)
        case Cloned():
            return CLONED
        case Decided():
            return decided_key(event.id)
        case SessionBegun():
            return session_key(event.session, event.generation)
        case Observed() | Expired() | Cancelled():
            return closed_key(event.id)
        case Partial():
            return partial_key(event.id, event.n)
        case Amended():
            return amended_key(event.id, event.n)
        case _:
            raise TypeError(f"{type(event).__name__} is of no decision")


def reference_key(reference: str) -> str:
    """Under this key a log holds at most one `reference_added` of a client's id. (Two slashes: a decision may be called so.)"""
    return f"reference//{reference}"


def added_key(arm: str) -> str:
    """Under this key a log holds the arrival of an arm. (Two slashes: a decision may be called `arm`, and an arm `decided`.)"""
    return f"arm//{arm}"


def promoted_key(promotion: str) -> str:
    """Under this key a log holds at most one `shadow_promoted` of a client's id."""
    return f"promoted//{promotion}"
