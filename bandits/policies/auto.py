"""`auto`: information-directed sampling on a hierarchical posterior whose every scale is set by the evidence.

    sums ──prepare, when outcomes have grown by 30 %──> Posterior ──one outcome, one step──> Posterior ──> IDS ──> weights

There is no constant to set: rewards are standardized by their own mean and variance, several bandwidths are weighed by the
evidence, and the model in which the prompt decides is weighed against the one in which it does not (`trust`).

The posterior is a function of the log, not of the sums alone (scales start where they were; outcomes move it in order). Prepare
number i is made of the sums at exactly its outcome count, however late it is computed, and then moved on by the outcomes since.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandits import draw
from bandits.evidence import posterior as posteriors
from bandits.evidence import sums
from bandits.evidence.features import EvidenceFeatures, Lifted
from bandits.evidence.posterior import Posterior, Preparation
from bandits.evidence.sums import EvidenceArm
from bandits.functional import information_directed, kernels
from bandits.hyperparameters import drift_field, exploration_floor_field, forget_half_life_field, hyper
from bandits.types import Amendment, ArmState, Choose, Context, Need, Observation, Policy, State, Weights, cached_field

Floats = NDArray[np.float64]

GROWTH, STEP = 1.3, 4
"""The next prepare is due when outcomes have grown by this factor, and by this many."""
MOST_WAITING, MOST_STEPS = 3, 2_048
"""Prepares that may be due at once, and outcomes since one of them: beyond that a fold computes the oldest. Old sums are not held
for ever then, and the time of a replay does not grow with the square of its outcomes.
"""


class Step(NamedTuple):
    """An outcome, or (prompt = None) the loss of all that was known of an arm, in the order of the log. corrects: the values are
    what must be added to those of an earlier outcome.
    """

    arm: int
    prompt: Lifted | None
    values: Sequence[float]
    corrects: bool = False


class Waiting(NamedTuple):
    """A prepare that is due, and the outcomes since."""

    due: Preparation
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class AutoShared:
    """What `auto` keeps for the bandit as a whole.

    outcomes: ever.  next_prepare: the outcome count at which the next one is due.  has_all: 1 from when every active arm has an
    outcome.  origin: (S,) the first value of each signal, from which its sums are measured; NaN before it.
    """

    outcomes: int
    next_prepare: int
    has_all: int
    origin: Tensor
    posterior: Posterior | None = cached_field()
    waiting: tuple[Waiting, ...] = cached_field()


class _Scores(NamedTuple):
    """What is maximized. mean, deviation: (K,).  signals: (S, K) means.  comparable: whether these tell the arms apart.
    prepared: outcomes behind the preparation.
    """

    comparable: bool
    prepared: int
    mean: Floats
    deviation: Floats
    signals: Floats


class Prepared(NamedTuple):
    """The newest posterior as it was at its own outcome count, left in `State.cache` for states that were folded since."""

    posterior: Posterior


@dataclass(frozen=True, kw_only=True)
class Auto(Policy):
    """Evidence-tuned contextual bandit."""

    kind: ClassVar[str] = "auto"
    needs: ClassVar[frozenset[Need]] = frozenset({"reward"})
    uses_prompt: ClassVar[bool] = True
    weighs_signals: ClassVar[bool] = True
    prepares_rarely: ClassVar[bool] = True
    summary: ClassVar[str] = (
        "The default: finds out whether and how the prompt matters, for rewards of any scale; nothing to set."
    )

    context: bool = hyper(True, "false: ignore the prompt, even where the bandit takes one.")
    exploration_floor: float = exploration_floor_field()
    drift: Literal["off", "detect"] = drift_field()
    forget_half_life: int | None = forget_half_life_field()

    # -- the features ----------------------------------------------------------------------------------------------------

    @property
    def contextual(self) -> bool:
        return self.features.dim > 0

    @cached_property
    def features(self) -> EvidenceFeatures:
        """The map from a prompt to z."""
        return EvidenceFeatures(self.dim if self.context else 0, self.seed)

    @cached_property
    def fingerprint(self) -> str:
        return kernels.fingerprint(self.features.frequencies) if self.features.dim else ""

    @property
    def grown_arm_bytes(self) -> int:
        return sums.grown_bytes(self.features)

    # -- the sums --------------------------------------------------------------------------------------------------------

    def init(self) -> EvidenceArm:
        return EvidenceArm.init(size=self.features.size, signals=len(self.signals))

    def init_reference(self) -> AutoShared:
        return AutoShared(0, 2, 0, torch.full((len(self.signals),), math.nan, dtype=torch.float64), None, ())

    def update(self, state: State, seen: Observation) -> ArmState:
        shifted, _ = self._shifted(state.reference, seen.values(len(self.signals)))
        return self._learned(state.arms[seen.arm], seen, self.features.lift(seen.features), shifted)

    def _learned(self, arm: EvidenceArm, seen: Observation, prompt: Lifted, shifted: Sequence[float]) -> EvidenceArm:
        return arm.update(seen.features, prompt.z, shifted, self.features, held=seen.held > 0, was_pending=seen.was_pending)

    def amend_arm(self, state: State, change: Amendment) -> ArmState:
        arm: EvidenceArm = state.arms[change.arm]
        new, origin = self._shifted(state.reference, change.new)
        z, old = self.features.lift(change.features).z, np.array(change.old) - origin.numpy()
        return arm.amend(change.features, z, old, np.array(new), self.features, held=change.held > 0)

    def amend(self, state: State, change: Amendment) -> State:
        """The sums, and the posterior at fixed scales: a signal that was missing is one more value, any other a difference. An
        outcome that is corrected brings the next prepare nearer like one more: average and scales are still those of old values.
        """
        shared = self._adopted(state)
        new, origin = self._shifted(shared, change.new)
        old = np.array(change.old)
        prompt = self.features.lift(change.features)
        added = Step(change.arm, prompt, np.where(np.isnan(old), new, np.nan).tolist())
        raised = Step(change.arm, prompt, (np.array(change.new) - old).tolist(), corrects=True)
        for step in (added, raised):
            if any(map(math.isfinite, step.values)):
                posterior, waiting = self._stepped(shared, step, len(state.arms))
                nearer = max(shared.next_prepare - int(step.corrects), shared.outcomes)
                shared = replace(shared, next_prepare=nearer, posterior=posterior, waiting=waiting)
        arms = list(state.arms)
        arms[change.arm] = self.amend_arm(state, change)
        return replace(state, arms=tuple(arms), reference=replace(shared, origin=origin))

    def _shifted(self, shared: AutoShared, given: Sequence[float]) -> tuple[list[float], Tensor]:
        """(S,) the signals, NaN = missing, and (S,) the origin from which they are measured, once there is one."""
        origin = shared.origin.tolist()
        shifted = [value - first for value, first in zip(given, origin, strict=True)]
        if not any(map(math.isnan, shifted)):
            return shifted, shared.origin
        # a signal is missing, or this is its first value
        origin = [value if math.isnan(first) else first for value, first in zip(given, origin, strict=True)]
        shifted = [value - first for value, first in zip(given, origin, strict=True)]
        return shifted, torch.tensor(origin, dtype=torch.float64)

    def fold(self, state: State, seen: Observation) -> State:
        """One more outcome: the sums, and the posterior at fixed scales. At its outcome count the next prepare is noted."""
        shared = self._adopted(state)
        shifted, origin = self._shifted(shared, seen.values(len(self.signals)))
        arms = list(state.arms)
        prompt = self.features.lift(seen.features)
        arms[seen.arm] = self._learned(arms[seen.arm], seen, prompt, shifted)
        posterior, waiting = self._stepped(shared, Step(seen.arm, prompt, shifted), len(arms))
        shared = AutoShared(shared.outcomes + 1, shared.next_prepare, shared.has_all, origin, posterior, waiting)
        scheduled = self._scheduled(shared, tuple(arms), state.retired)
        if (waiting := scheduled.waiting) and (len(waiting) > MOST_WAITING or len(waiting[0].steps) >= MOST_STEPS):
            scheduled = self._prepared(scheduled, leave=len(waiting) - 1)[0]
        since, recent_since = state.since, state.recent_since
        return State(
            tuple(arms), scheduled, state.cache, state.retired, since=since, recent_since=recent_since, layout=state.layout
        )

    def reset_arm(self, state: State, arm: int) -> State:
        shared = self._adopted(state)
        posterior, waiting = self._stepped(shared, Step(arm, None, ()), len(state.arms))
        shared = replace(shared, next_prepare=shared.outcomes, posterior=posterior, waiting=waiting)
        return replace(super().reset_arm(state, arm), reference=shared)

    def carry_pending(self, old: ArmState, new: ArmState) -> ArmState:
        return replace(new, answered=old.answered, pending=old.pending)

    def dropped(self, state: State) -> State:
        """The next outcome brings a prepare; until then the posterior is what it was."""
        return replace(state, reference=replace(state.reference, next_prepare=state.reference.outcomes))

    def _stepped(self, shared: AutoShared, step: Step, arms: int) -> tuple[Posterior | None, tuple[Waiting, ...]]:
        """The posterior with the step taken, and those that are being prepared with the step noted."""
        posterior = None if shared.posterior is None else self._step(shared.posterior.with_arms(arms), step)
        return posterior, tuple(one._replace(steps=(*one.steps, step)) for one in shared.waiting)

    def _step(self, posterior: Posterior, step: Step) -> Posterior:
        if step.prompt is None:
            return posterior.forget(step.arm)
        moved = posterior.correct if step.corrects else posterior.step
        return moved(step.arm, step.prompt.within(posterior.basis), step.values)

    def _scheduled(self, shared: AutoShared, arms: tuple[EvidenceArm, ...], retired: frozenset[int]) -> AutoShared:
        """With the next prepare waiting if it is due. A prepare waits for no arm, but the count starts again when all have
        outcomes: scales that were set while arms were missing would be where the sweeps start.
        """
        if shared.has_all and shared.outcomes < shared.next_prepare:
            return shared
        active = tuple(index not in retired for index in range(len(arms)))
        completed = not shared.has_all and all(arm.pulls for arm, counts in zip(arms, active, strict=True) if counts)
        if completed:
            shared = replace(shared, has_all=1)
        if shared.outcomes < shared.next_prepare and not completed:
            return shared
        if not any(active) or not self._varies(arms, active):
            return replace(shared, next_prepare=shared.outcomes)  # all values alike: nothing can be compared yet
        due = Preparation(shared.outcomes, arms, active, bool(shared.has_all))
        held = sum(arm.pulls for arm in arms)  # fewer than came, where an arm started over or older outcomes were dropped
        gone = due.count - held
        waiting = (*shared.waiting, Waiting(due, ()))
        return replace(shared, waiting=waiting, next_prepare=max(due.count + STEP, gone + math.ceil(GROWTH * held)))

    def _varies(self, arms: Sequence[EvidenceArm], active: Sequence[bool]) -> bool:
        for k in range(len(self.signals)):
            counted = [arm for arm, counts in zip(arms, active, strict=True) if counts]
            counts = np.array([arm.gram(k).count for arm in counted], dtype=np.float64)
            moments = np.array([float(arm.moments[k, 0]) for arm in counted])
            if posteriors.pooled_moments(counts, moments, np.array([float(arm.squares[k]) for arm in counted]))[1]:
                return True
        return False

    # -- preparing -------------------------------------------------------------------------------------------------------

    def prepare(self, state: State) -> State:
        shared = self._adopted(state)
        if self._is_lost(state):
            shared = self._scheduled(replace(shared, next_prepare=0), state.arms, state.retired)
        shared, newest = self._prepared(shared, leave=0)
        cache = state.cache if newest is None else Prepared(newest)
        return replace(state, reference=shared, cache=cache)

    def has_to_prepare(self, state: State) -> bool:
        shared: AutoShared = state.reference
        if not shared.waiting:
            return self._is_lost(state)
        return not isinstance(state.cache, Prepared) or state.cache.posterior.count != shared.waiting[-1].due.count

    def folds_slowly(self, state: State) -> bool:
        waiting: tuple[Waiting, ...] = state.reference.waiting
        return bool(waiting) and (len(waiting) >= MOST_WAITING or len(waiting[0].steps) >= MOST_STEPS // 2)

    def _prepared(self, shared: AutoShared, *, leave: int) -> tuple[AutoShared, Posterior | None]:
        """With all but the newest `leave` waiting prepares done, in order; and the last of them as it was at its own count."""
        posterior, waiting, newest = shared.posterior, list(shared.waiting), None
        while len(waiting) > leave:
            due, steps = waiting.pop(0)
            before = posterior if posterior is not None and posterior.has_all == due.has_all else None
            newest = posteriors.prepare(due, before, self.features, signals=len(self.signals))
            posterior = newest
            for step in steps:
                posterior = self._step(posterior.with_arms(step.arm + 1), step)
        return replace(shared, posterior=posterior, waiting=tuple(waiting)), newest

    def _is_lost(self, state: State) -> bool:
        """Whether the sums come without the posterior that was prepared of them: from a snapshot of another build. Where none was
        prepared because all values were alike, one is due at the next outcome, whatever arm came back meanwhile.
        """
        shared: AutoShared = state.reference
        if shared.posterior is not None or shared.waiting or not 2 <= shared.outcomes < shared.next_prepare:
            return False
        return self._varies(state.arms, [index not in state.retired for index in range(len(state.arms))])

    def _adopted(self, state: State) -> AutoShared:
        """With the posterior that was prepared while this state was folded, if there is one."""
        shared: AutoShared = state.reference
        if isinstance(state.cache, Prepared):
            for place, (due, steps) in enumerate(shared.waiting):
                if due.count == state.cache.posterior.count:
                    posterior = state.cache.posterior
                    for step in steps:
                        posterior = self._step(posterior.with_arms(step.arm + 1), step)
                    return replace(shared, posterior=posterior, waiting=shared.waiting[place + 1 :])
        return shared

    # -- the decision ----------------------------------------------------------------------------------------------------

    def add_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.with_pending(features)

    def remove_pending(self, arm: ArmState, features: Tensor) -> ArmState:
        return arm.without_pending(features)

    def weights(self, state: State, contexts: Sequence[Context]) -> Weights:
        extra = [0] * len(state.arms)
        parts = []
        for context in contexts:
            part = self._weigh(state, context, extra)
            if (forced := part.assumed[0]) >= 0:
                extra[forced] += 1
            parts.append(part)
        return parts[0] if len(parts) == 1 else replace(Weights.joined(parts), assumed=[part.assumed[0] for part in parts])

    def weights_in_order(self, state: State, contexts: Sequence[Context], choose: Choose) -> Weights:
        extra, parts = [0] * len(state.arms), []
        for row in range(len(contexts)):
            part = self._weigh(state, contexts[row], extra)
            parts.append(part)
            arm = choose(row, part.values[0].tolist())
            if arm >= 0:
                extra[arm] += 1
                arms = list(state.arms)
                arms[arm] = arms[arm].with_pending(contexts[row].features)
                state = replace(state, arms=tuple(arms))
        return Weights.joined(parts)

    def _weigh(self, state: State, context: Context, extra: Sequence[int]) -> Weights:
        """One row. extra: decisions per arm that earlier rows of the call made. `assumed`: the arm, where there is no choice."""
        arms = state.arms
        held = [arm.pulls + pending + more for arm, pending, more in zip(arms, context.pending, extra, strict=True)]
        decided = [made + more for made, more in zip(context.decided, extra, strict=True)] if context.decided else held
        candidates = [index for index, is_allowed in enumerate(context.allowed) if is_allowed]
        untried = [index for index in candidates if decided[index] == 0]
        allowed = None if len(candidates) == len(arms) else np.array(context.allowed)  # None: all of them
        scores = self._score(self._adopted(state), arms, context, allowed)
        if untried or not scores.comparable:
            values = np.zeros(len(arms))
            forced = untried[0] if untried else min(candidates, key=lambda index: (held[index], index))
            values[forced] = 1.0
            return self._row(values, forced, scores)
        chosen = slice(None) if allowed is None else allowed
        mean, deviation = scores.mean[chosen], scores.deviation[chosen]
        largest, lowest = float(mean.max()), float(mean.min())
        if largest == lowest and not deviation.any():
            of_allowed = np.full(len(candidates), 1.0 / len(candidates))
        else:
            smallest = 1e-9 * (max(largest, -lowest) + 1e-300)
            answered = _answered(arms, context)[chosen] if context.decided else None
            of_allowed = information_directed.weights(mean, np.maximum(deviation, smallest), answered=answered)
        if not math.isfinite(of_allowed.sum()):
            of_allowed = np.full(len(candidates), 1.0 / len(candidates))
        if self.exploration_floor:
            of_allowed = (1.0 - self.exploration_floor) * of_allowed + self.exploration_floor / len(candidates)
        if allowed is None:
            return self._row(of_allowed, draw.STOP, scores)
        values = np.zeros(len(arms))
        values[allowed] = of_allowed
        return self._row(values, draw.STOP, scores)

    def _row(self, values: Floats, forced: int, scores: _Scores) -> Weights:
        tables = {"estimate": scores.mean, "deviation": scores.deviation} if scores.prepared else {}
        if len(self.signals) > 1 and tables:
            tables |= {f"signals.{name}": row for name, row in zip(self.signals, scores.signals, strict=True)}
        shown = {name: torch.from_numpy(row[None]) for name, row in tables.items()}
        return Weights(torch.from_numpy(values[None]), shown, [forced], scores.prepared)

    def _score(
        self, shared: AutoShared, arms: Sequence[EvidenceArm], context: Context, allowed: NDArray[np.bool_] | None
    ) -> _Scores:
        """What is maximized per arm, as of now: signals are learned apart, and weighed here. allowed: (K,); None = all."""
        if shared.posterior is None:
            return self._score_constants(shared, context, allowed)
        mean = np.array(context.constants) if context.constants else np.zeros(len(arms))
        comparable = bool(context.constants) and _are_different(mean, allowed)
        posterior, factors = shared.posterior.with_arms(len(arms)), context.coefficients or ((1.0,) * len(arms),)
        w, origin = self.features.lift(context.features).within(posterior.basis), shared.origin.tolist()
        pending, variance = [arm.pending for arm in arms], np.zeros(len(arms))
        signals, used = np.full((len(self.signals), len(arms)), np.nan), False

        def project(x: bytes) -> Floats:
            return self.features.lift_bytes(x).within(posterior.basis)

        for k, row in enumerate(factors):
            if any(row):  # else it is not asked for
                of_signal, spread = posterior.scores(k, w, pending, project, allowed)
                of_signal += 0.0 if math.isnan(origin[k]) else origin[k]  # never seen: counts 0
                signals[k] = of_signal
                factor = np.array(row)
                of_signal *= factor
                mean += of_signal
                factor *= factor
                spread *= factor
                variance += spread
                used, comparable = True, comparable or bool(posterior.signals[k].fits)
        return _Scores(comparable or not used, posterior.count, mean, np.sqrt(variance), signals)

    def _score_constants(self, shared: AutoShared, context: Context, allowed: NDArray[np.bool_] | None) -> _Scores:
        """While every signal has had one value alone: arms differ by what is known of them, such as their prices."""
        arms = len(context.allowed)
        signals = np.repeat(np.nan_to_num(shared.origin.numpy())[:, None], arms, 1)  # never seen: counts 0
        mean = np.array(context.constants or (0.0,) * arms)
        if context.coefficients:
            mean = mean + (np.array(context.coefficients) * signals).sum(0)
        return _Scores(_are_different(mean, allowed), 0, mean, np.zeros(arms), signals)

    # -- drift -----------------------------------------------------------------------------------------------------------

    def surprise(self, state: State, seen: Observation) -> float | None:
        shared = self._adopted(state)
        values = np.array(seen.values(len(self.signals)), dtype=np.float64)
        if shared.posterior is None or not np.isfinite(values[0]):
            return None
        posterior = shared.posterior.with_arms(len(state.arms))
        w = self.features.lift(seen.features).within(posterior.basis)
        return posterior.signals[0].surprise(seen.arm, w, float(values[0] - shared.origin[0]))

    def trust(self, state: State) -> float | None:
        posterior: Posterior | None = state.reference.posterior  # that of the newest prepare may be adopted a moment later
        return None if posterior is None or not self._has_choice(state) else posterior.signals[0].trust

    @staticmethod
    def _has_choice(state: State) -> bool:
        """Whether outcomes tell of two arms at least: of one alone, nothing can be said of what decides between arms."""
        return len([arm for index, arm in enumerate(state.arms) if arm.pulls and index not in state.retired]) > 1

    # -- bytes -----------------------------------------------------------------------------------------------------------

    def pack_derived(self, state: State) -> bytes:
        shared: AutoShared = self.prepare(state).reference
        if shared.posterior is None:
            return b""
        tensors, about = posteriors.to_tensors(shared.posterior)
        return safetensors.torch.save(tensors, metadata={"posterior": json.dumps(about)})

    def unpack_derived(self, state: State, data: bytes) -> State:
        if not data:
            return state
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        posterior = posteriors.from_tensors(tensors, json.loads(header["__metadata__"]["posterior"]))
        return replace(state, reference=replace(state.reference, posterior=posterior))

    # -- what it reports -------------------------------------------------------------------------------------------------

    def report(self, state: State) -> dict[str, Any]:
        shared = self._adopted(state)
        posterior, origin = shared.posterior, np.nan_to_num(shared.origin.numpy())
        arms: list[dict[str, Any]] = [{"pulls": arm.pulls, "estimate": None, "deviation": None} for arm in state.arms]
        report: dict[str, Any] = {"arms": arms, "prepared": None, "trust": None, "variance": None, "noise": None, "signals": {}}
        if posterior is None:
            return report
        posterior, has_choice = posterior.with_arms(len(arms)), self._has_choice(state)
        report["prepared"] = posterior.count
        for k, name in enumerate(self.signals):
            one = posterior.signals[k]
            trust = one.trust if has_choice else None
            report["signals"][name] = {"outcomes": one.count, "varies": bool(one.fits), "trust": trust}
        reward = posterior.signals[0]
        report["trust"] = reward.trust if has_choice else None
        if reward.fits:
            fit = reward.fits[0]
            for index, arm in enumerate(arms):  # at the average prompt: w = (1, 0, ..., 0)
                arm["estimate"] = float(reward.mean + origin[0] + reward.root * fit.theta[index, 0])
                arm["deviation"] = float(reward.root * np.sqrt(max(fit.covariance(index)[0, 0], 0.0)))
            parts = {
                "arm": fit.scales.level,
                "prompt": float(fit.scales.shared.sum()),
                "arm_and_prompt": float(fit.scales.own.sum()),
                "noise": fit.scales.noise,
            }
            if has_choice:
                report["variance"] = {name: part / sum(parts.values()) for name, part in parts.items()}
            report["noise"] = float(reward.root * np.sqrt(fit.scales.noise))  # a deviation, in the unit of the rewards
        return report


def _are_different(mean: Floats, allowed: NDArray[np.bool_] | None) -> bool:
    """Whether the arms that are allowed, None = all, differ."""
    return bool(np.ptp(mean if allowed is None else mean[allowed]) > 0.0)


def _answered(arms: Sequence[EvidenceArm], context: Context) -> Floats:
    """(K,) the share of the closed decisions of each arm that brought an outcome, by Laplace's rule of succession. An arm that
    always expires stays as uncertain as it is new, and would be tried for ever.
    """
    answered = np.array([arm.answered for arm in arms], dtype=np.float64)
    closed = np.maximum(np.array(context.decided) - np.array(context.pending), answered)
    return np.asarray((answered + 1.0) / (closed + 1.0))
