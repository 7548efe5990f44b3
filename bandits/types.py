"""The protocol of a policy: contexts and observations in, weights and statistics out.

    contexts --> weights(state, contexts) --> Weights      one distribution over the arms per context; zeros = stop
    observation --> update(state, observation) --> arm_state'      the new statistic of the one arm that it is about

Letters used for shapes in the whole package: B contexts in a batch, K arms, d length of the features,
p length of the lifted features, D random frequencies, n samples, e length of one output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bandits import hyperparameters
from bandits.errors import InvalidHyperparameter

Need = Literal["features", "reward", "output", "reference", "cost"]

Choose = Callable[[int, Sequence[float]], int]
"""(place of a row in the call, its weights (K,)) -> the arm that is pending from then on, or a negative number: none is."""

ArmState = Any
"""A frozen dataclass of sums: tensors, ints and floats. Its layout is the policy's own."""


REFERENCE = -1
"""The arm of an observation that is reference material."""


_NOTHING, _NO_ROWS = torch.empty(0, dtype=torch.float64), torch.empty((0, 0), dtype=torch.float64)


def empty() -> Tensor:
    """A vector of length zero: "no features" and "no output" without a None. All share one."""
    return _NOTHING


def empty_rows() -> Tensor:
    """A matrix without rows. All share one."""
    return _NO_ROWS


@dataclass(frozen=True, kw_only=True)
class Context:
    """The information at hand when an arm must be chosen.

    features: (d,) the embedded prompt, empty for policies that take none.
    allowed:  (K,) arms that may be chosen now.
    pending:  (K,) decisions per arm whose outcome has not come back yet.
    attempts: (K,) calls per arm already made, without success, in this episode.
    prices:   (K,) price of one call per arm, >= 0.
    skipped:  prompts so far that got a stop before any call.
    decided:  (K,) decisions per arm so far, whatever became of them; empty = outcomes and pending ones.
    failed:   (K,) calls per arm that failed, so that nothing was learned of them; empty = none. They count for burn-in.
    coefficients: (S, K) factor of each learned signal per arm in what is maximized; empty = 1 for the first signal, 0 for others.
    constants: (K,) what is added to it per arm without being learned, such as a known price; empty = 0.
    """

    allowed: tuple[bool, ...]
    features: Tensor = field(default_factory=empty)
    pending: tuple[int, ...] = ()
    attempts: tuple[int, ...] = ()
    prices: tuple[float, ...] = ()
    skipped: int = 0
    decided: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    coefficients: tuple[tuple[float, ...], ...] = ()
    constants: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        arms = len(self.allowed)
        if not any(self.allowed):
            raise ValueError("a context must allow at least one arm")
        for name, default in (("pending", 0), ("attempts", 0), ("prices", 0.0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * arms)
            elif len(getattr(self, name)) != arms:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {arms} arms")


@dataclass(frozen=True)
class Moments:
    """First two moments of `count` samples. mean: (e,).  covariance: (e, e), divided by count - 1."""

    mean: Tensor
    covariance: Tensor
    count: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A decision joined with its outcome; without an arm (`REFERENCE`) it is reference material.

    features: (d,) of the decision; for reference pairs (n, d), one prompt per output.
    reward:   any finite number; 0 where the policy does not need one.  cost: >= 0, in the unit of the prices.
    output:   (n, e) samples that came back.  reference: (n, e) real outputs for the same prompt.
    moments:  reference moments, set at once instead of samples.
    signals:  (S,) values of `Policy.signals`, NaN = missing; empty = the reward alone.
    was_pending: `Policy.add_pending` was called for this decision when it was made (see there).
    offset: place in the log, 0 = none.  held: offset of the newest event that taught other signals of this decision, which are
    missing here; 0 = none did.
    """

    arm: int = REFERENCE
    features: Tensor = field(default_factory=empty)
    reward: float = 0.0
    cost: float = 0.0
    output: Tensor = field(default_factory=empty_rows)
    reference: Tensor = field(default_factory=empty_rows)
    moments: Moments | None = None
    signals: tuple[float, ...] = ()
    was_pending: bool = False
    offset: int = 0
    held: int = 0

    @staticmethod
    def of(**values: Any) -> Observation:
        """From values of all fields, in a fraction of the time of the constructor, which sets each by a call of its own."""
        made = object.__new__(Observation)
        vars(made).update(values)
        return made

    def never_pending(self) -> Observation:
        """The same of a decision that was not pending."""
        return Observation.of(**{**vars(self), "was_pending": False}) if self.was_pending else self

    def values(self, signals: int) -> tuple[float, ...]:
        """(S,) one value per learned signal, NaN = missing: where none were given, the reward is the first and only one."""
        return self.signals or (self.reward, *[math.nan] * (signals - 1))


@dataclass(frozen=True, kw_only=True)
class Amendment:
    """New values for signals of one decision. It is no further outcome: counts and Gram matrices stay as they are, except those
    of signals that were missing.

    features: (d,) of the decision.  old, new: (S,) values of `Policy.signals`; new NaN = unchanged, old NaN = it was missing.
    learned: (S,) offsets of the events that taught the old values.  offset, held: as in `Observation`.
    has_output: whether the outcome came with one, which policies need that learn from outputs.
    """

    arm: int
    features: Tensor
    old: tuple[float, ...]
    new: tuple[float, ...]
    learned: tuple[int, ...]
    offset: int
    held: int
    has_output: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return all(map(math.isnan, self.new))

    def within(self, since: Sequence[int]) -> Amendment:
        """What of it concerns sums that hold what came from these offsets on, one per arm: a value that was dropped from them
        cannot be corrected in them.
        """
        first = since[self.arm] if self.arm < len(since) else 0
        gone = [offset < first and not math.isnan(old) for offset, old in zip(self.learned, self.old, strict=True)]
        new = tuple(math.nan if dropped else value for dropped, value in zip(gone, self.new, strict=True))
        return replace(self, new=new, held=self.held if self.held >= first else 0)


@dataclass(frozen=True)
class Weights:
    """One distribution over the arms per context, with the scores behind it.

    values: (B, K) rows that sum to 1, or to 0 for "stop".
    scores: name -> (B, K) in the policy's own terms (for ridge policies `estimate` and `bonus`); NaN = not scored.
    assumed: per row the arm that the rows after it took for pending, negative = they took none; () = no row matters to another.
    prepared: outcomes behind the newest `prepare`, where what is derived depends on when that was; else None.
    """

    values: Tensor
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    assumed: Sequence[int] = ()
    prepared: int | None = None

    @staticmethod
    def joined(parts: Sequence[Weights]) -> Weights:
        """The rows of several calls in one."""
        scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
        return Weights(torch.cat([part.values for part in parts]), scores, prepared=parts[0].prepared)

    def first(self, rows: int) -> Weights:
        """The first rows of these."""
        return Weights(self.values[:rows], {name: table[:rows] for name, table in self.scores.items()})


@dataclass(frozen=True)
class NoReference:
    """The reference statistic of policies that take none."""


LAYOUT = 2
"""How the sums of a new state are laid out: from 2 on a ridge regression holds its last observations apart from the sum of those
before them (`bandits/regression/ridge.py`). A log says which one its states have; what it says never changes a sum of its past.
"""


def layout_field(since: int) -> Any:
    """A dataclass field, a tuple, that a statistic has from this layout on; before, it stays empty and is not packed."""
    return field(default=(), metadata={"since": since})


def cached_field() -> Any:
    """A dataclass field that is a cache: derived from the sums, never packed, compared or digested."""
    return field(default=None, compare=False, repr=False, metadata={"derived": True})


@dataclass(frozen=True)
class State:
    """The knowledge of a policy: one statistic per arm (in the order in which the arms were added), and one of the reference,
    or of whatever else concerns the bandit as a whole.

    retired: arms that decisions do not choose for now; the log says so, not the sums.
    recent, outcomes: where a policy forgets (`forget_half_life`), the statistics of what came since the last drop, and the count
    of all outcomes. Every half life `recent` takes the place of `arms` and starts again, so that `arms` knows the outcomes since
    the drop before the last. Nothing is pending in `recent`.
    since, recent_since: offsets in the log from which on outcomes are in `arms` and in `recent`, one per arm; arms that are left
    out hold all of theirs.
    layout: see `LAYOUT`.
    cache: what a policy derives from all arms together (see `Policy.prepare`); it survives a fold, so a reader must check that
    it was made for these very `arms`, and may use an older one as a warm start.
    """

    arms: tuple[ArmState, ...]
    reference: ArmState
    cache: Any = cached_field()
    retired: frozenset[int] = frozenset()
    recent: tuple[ArmState, ...] = ()
    outcomes: int = 0
    since: tuple[int, ...] = ()
    recent_since: tuple[int, ...] = ()
    layout: int = LAYOUT

    def with_arms(self, arms: tuple[ArmState, ...]) -> State:
        """The same with other statistics, in an eighth of the time of `dataclasses.replace`."""
        made = object.__new__(State)
        vars(made).update(vars(self), arms=arms)
        return made


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A frozen set of hyperparameters with the pure functions of the protocol.

    A subclass declares its hyperparameters with `hyperparameters.hyper`, so that range, default, meaning and source are
    declared once for validation, for the HTTP schema and for the documentation. `dim`, `output_dim` and `seed` belong to the
    bandit.

    It must define `init`, `update` and `weights`. Everything else is optional; the defaults do nothing.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    summary: ClassVar[str]
    episodic: ClassVar[bool] = False  # several attempts on one prompt, ended by `succeeded` or a stop
    reference_frozen: ClassVar[bool] = False  # no reference material after the first decision
    reference_when: ClassVar[str] = ""  # which settings need a reference, where not all do
    outputs: ClassVar[Literal["vectors", "probabilities"]] = "vectors"  # what an output is, where outputs are needed
    uses_prompt: ClassVar[bool] = False  # takes features where there are any, although it does not need them
    weighs_signals: ClassVar[bool] = False  # learns several signals, and weighs them as a context says
    not_amendable: ClassVar[frozenset[str]] = frozenset()  # signals whose old value cannot be taken out of the statistic
    prepares_rarely: ClassVar[bool] = False  # `prepare` takes a tenth of a second now and then, and nothing in between

    dim: int = hyperparameters.setting(0, "length d of the features; 0 = the bandit takes no prompts")
    output_dim: int = hyperparameters.setting(0, "length e of one output; 0 = the bandit takes no outputs")
    seed: int = hyperparameters.setting(0, "seed of the random frequencies")
    signals: tuple[str, ...] = hyperparameters.setting(("reward",), "names of the signals that are learned, in order")

    def __post_init__(self) -> None:
        hyperparameters.validate(self)

    @property
    def contextual(self) -> bool:
        """Whether a decision needs features."""
        return "features" in self.needs

    @property
    def arms_independent(self) -> bool:
        """Whether an outcome changes, and reads, the statistic of its own arm alone."""
        return False

    @property
    def drift(self) -> Literal["off", "detect"]:
        """What happens when an arm changes; a hyperparameter of the policies that learn a reward."""
        return "off"

    @property
    def watches_drift(self) -> bool:
        """Whether `surprise` is asked for every reward, so that an arm that changed is learned from the start."""
        return self.drift == "detect"

    @property
    def forget_half_life(self) -> int | None:
        """See `State.recent`; a hyperparameter of the policies that learn a reward."""
        return None

    @property
    def drops_outcomes(self) -> bool:
        """Whether older outcomes may be gone from its sums, so that it matters at which offsets they were learned."""
        return self.watches_drift or self.forget_half_life is not None

    @property
    def fingerprint(self) -> str:
        """sha256 of the random numbers drawn at the start; "" where there are none. Stands in the log's first event."""
        return ""

    @property
    def grown_arm_bytes(self) -> int:
        """Bytes that the statistic of an arm grows to beside those that it has at the start, without `max_samples` of samples."""
        return 0

    # -- the statistic ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def init(self) -> ArmState:
        """The statistic of an arm that has seen nothing. It has a field `pulls: int`, the observations folded into it."""

    @abstractmethod
    def update(self, state: State, seen: Observation) -> ArmState:
        """The new statistic of arm `seen.arm` after one more observation of it. Never writes into `state`."""

    def update_many(self, state: State, seen: Sequence[Observation]) -> ArmState:
        """`update` with several observations of one arm, in order; called on policies with `arms_independent`. The sums must be
        those of `update`, to the last bit; what is derived may differ in its rounding.
        """
        arms, index = list(state.arms), seen[0].arm
        for one in seen:
            arms[index] = self.update(state.with_arms(tuple(arms)), one)
        return arms[index]

    def fold(self, state: State, seen: Observation) -> State:
        """The state after one more observation of an arm. Here: `update` of its statistic."""
        arms = list(state.arms)
        arms[seen.arm] = self.update(state, seen)
        return state.with_arms(tuple(arms))

    def amend(self, state: State, change: Amendment) -> State:
        """The state after values of an earlier decision changed. Here: `amend_arm` of its statistic."""
        arms = list(state.arms)
        arms[change.arm] = self.amend_arm(state, change)
        return replace(state, arms=tuple(arms))

    def amend_arm(self, state: State, change: Amendment) -> ArmState:
        """The statistic of arm `change.arm` with the new values in place of the old ones. Here: it holds no signals."""
        return state.arms[change.arm]

    def reset_arm(self, state: State, arm: int) -> State:
        """The state in which nothing was ever seen of an arm: what it returns has changed. Its open decisions stay pending."""
        arms, recent = list(state.arms), list(state.recent)
        arms[arm] = self.carry_pending(arms[arm], self.init())
        if recent:
            recent[arm] = self.init()
        return replace(state, arms=tuple(arms), recent=tuple(recent))

    def carry_pending(self, old: ArmState, new: ArmState) -> ArmState:
        """The statistic `new`, of which nothing is pending, with what is pending in `old`."""
        return new

    def dropped(self, state: State) -> State:
        """The state after older outcomes were dropped from its arms (see `State.recent`)."""
        return state

    def surprise(self, state: State, seen: Observation) -> float | None:
        """How far the reward is from what was expected of this arm, in any unit that is the same for all its outcomes; None where
        nothing was expected.
        """
        return None

    def trust(self, state: State) -> float | None:
        """The probability that the prompt decides which arm is best; None where there is no prompt, or too little is known."""
        return None

    def init_reference(self) -> ArmState:
        """The statistic of the reference before any came."""
        return NoReference()

    def update_reference(self, state: State, seen: Observation) -> ArmState:
        """The new reference statistic after more reference material; only for policies that take a reference."""
        raise NotImplementedError(f"{self.kind} takes no reference")

    # -- the decision ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        """One distribution over the arms per context. In the burn-in, the rows of one call count as pending for each other."""

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        """`weights` of decisions that are made one after the other, at the price of one call: `choose` is asked row by row, and
        the arm that it answers is pending for the rows after it, burn-in, widths and ties included. It may replace later
        contexts meanwhile.

        This one serves policies in whose rule an earlier row matters by `Weights.assumed` alone.
        """
        parts: list[Weights] = []
        pending, row = [0] * len(state.arms), 0
        while row < len(contexts):
            rest = contexts[row:]
            if any(pending):
                rest = [replace(one, pending=tuple(map(sum, zip(one.pending, pending, strict=True)))) for one in rest]
            found, count = self.weights(state, rest), 0
            for values in found.values.tolist():
                arm = choose(row + count, values)
                count += 1
                if arm >= 0:
                    pending[arm] += 1
                if found.assumed and found.assumed[count - 1] >= 0 and found.assumed[count - 1] != arm:
                    break  # the rows after it assumed another arm
            parts.append(found.first(count))
            row += count
        return Weights.joined(parts)

    def prepare(self, state: State) -> State:
        """The same state with its derived caches filled, called after every fold and off the request path, so that `weights` is
        cheap on it. `weights` must also work on a state that was not prepared.
        """
        return state

    def has_to_prepare(self, state: State) -> bool:
        """Whether `prepare` would change anything for a state that was folded from a prepared one."""
        return True

    def folds_slowly(self, state: State) -> bool:
        """Whether a fold of this state may have to prepare, because so many preparations are due."""
        return False

    def is_prepared(self, state: State, contexts: Sequence[Context]) -> bool:
        """Whether `weights` finds what it needs among what `prepare` left; False = it would have to solve something first."""
        return True

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        """The statistic with its *derived* width shrunk as if the outcome of this pending decision had come back.

        The sums do not change, so digest and bytes stay as they are.
        """
        return arm

    def add_pending_many(self, arm: ArmState, features: Sequence[Tensor]) -> ArmState:
        """`add_pending` for several decisions; only what is derived changes, so their order does not matter."""
        for one in features:
            arm = self.add_pending(arm, one)
        return arm

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        """Undo one `add_pending`: the decision expired or was cancelled."""
        return arm

    def succeeded(self, reward: float) -> bool:
        """Whether this reward ends the episode (episodic policies only)."""
        return False

    # -- bytes of what is derived, for policies whose derived values depend on the path of the log and not on the sums alone ----

    def pack_derived(self, state: State) -> bytes:
        """What a snapshot keeps beside the sums, for this build alone; b"" = nothing."""
        return b""

    def unpack_derived(self, state: State, data: bytes) -> State:
        """The unpacked state with what `pack_derived` kept."""
        return state

    # -- what it refuses (before anything is logged) -----------------------------------------------------------------------

    def check_new(self) -> None:
        """Raise `InvalidHyperparameter` for settings with which a new bandit could not compute. Not asked of bandits that exist:
        what was accepted by an earlier version is folded for ever.
        """
        hyperparameters.check_sound(self)
        if len(self.signals) > 1 and not self.weighs_signals:
            raise InvalidHyperparameter("signals", f"are not weighed by {self.kind}, which learns the reward or outputs alone")

    def check_ready(self, state: State) -> None:
        """Raise `ReferenceMissing` where the policy cannot decide yet."""

    def check_context(self, context: Context) -> None:
        """Raise `InvalidContext` for features that this policy cannot decide on."""

    def check_observation(self, seen: Observation, *, state: State | None = None) -> None:
        """Raise `InvalidObservation` for an outcome that this policy cannot learn. Presence of what `needs` lists, lengths and
        finiteness are checked by the caller. state: what is known by now, for policies that need more where less is known.
        """

    def check_reference(self, state: State, seen: Observation) -> None:
        """Raise `InvalidObservation` for reference material that this policy cannot take."""

    # -- what it reports -----------------------------------------------------------------------------------------------------

    @property
    def reward_scale(self) -> tuple[float, float] | None:
        """The range of rewards that the hyperparameters are meant for; None = any."""
        return None

    def arms_without_estimate(self, state: State) -> list[int]:
        """Arms whose numbers are not finite any more, so that they are not chosen (see `draw.greedy_weights`)."""
        return []

    def report(self, state: State) -> dict[str, Any]:
        """The state in the policy's own terms, as plain JSON values: `arms` (one object per arm) and whatever is global.
        Unknown numbers are None, never NaN.
        """
        return {"arms": [{} for _ in state.arms]}
