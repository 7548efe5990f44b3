"""Policies as a log names them, and what each of several learns of the same events.

    Created, ShadowCreated ──> policy_of ──> Policy
    effects ──> Learned.fold ──> Learned        once per policy: the one that decides, and every shadow

A log speaks to the policy that decided. Another one may need what an outcome lacks, or refuse its prompt: it leaves that outcome
out, by its own checks alone, so that every replica and every replay leaves out the same.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from torch import Tensor

from bandits import state as states
from bandits.errors import BanditError, FieldError
from bandits.hyperparameters import declared
from bandits.objective import REWARD
from bandits.registry import POLICIES, build
from bandits.types import LAYOUT, REFERENCE, Amendment, Context, NoReference, Observation, Policy, State
from service.engine import events
from service.engine.errors import damage_at
from service.engine.events import Created
from service.engine.ledger import (
    AddPending,
    Amend,
    Effect,
    GrowArms,
    Learn,
    LiveSettings,
    OpenDecision,
    RemovePending,
    Reset,
    Retire,
    ShadowRecord,
)
from service.storage.base import Log

logger = logging.getLogger("nextarm.folding")


def policy_of(created: Created) -> Policy:
    """The policy that a log's first event names; refuses to run on other random numbers than it was started with."""
    return _built(created, created.policy, created.hyperparameters, created.fingerprint)


def deciding_policy(created: Created, live: LiveSettings) -> Policy:
    """The policy that decides now, with its present hyperparameters."""
    if live.policy is None:
        return replace(policy_of(created), **live.hyperparameters)
    return _built(created, live.policy, live.hyperparameters, live.fingerprint)


def shadow_policy(created: Created, shadow: ShadowRecord) -> Policy:
    """The policy of a shadow, on the random numbers of the bandit."""
    return _built(created, shadow.policy, shadow.hyperparameters, shadow.fingerprint)


def _built(created: Created, kind: str, hyperparameters: Mapping[str, Any], fingerprint: str) -> Policy:
    if kind not in POLICIES:
        raise events.NewerEvent(f"the policy {kind[:64]!r}")
    if created.layout is not msgspec.UNSET and created.layout > LAYOUT:
        raise events.NewerEvent(f"sums in layout {created.layout}")
    if unknown := {*hyperparameters} - {item.name for item in declared(POLICIES[kind])}:
        raise events.NewerEvent(f"the hyperparameter {min(unknown)[:64]!r} of {kind}")
    policy = build_for(created, kind, hyperparameters)
    if policy.fingerprint != fingerprint:
        raise BanditError("the random frequencies differ from those that the bandit was created with (another NumPy?)")
    return policy


def build_for(created: Created, kind: str, hyperparameters: Mapping[str, Any]) -> Policy:
    """A policy of this kind as it would learn from this bandit's log. Raises `InvalidHyperparameter`."""
    return build(
        kind,
        dict(hyperparameters),
        dim=created.dim,
        output_dim=created.output_dim,
        seed=created.seed,
        signals=created.learned if kind not in POLICIES or POLICIES[kind].weighs_signals else (REWARD,),
    )


@functools.lru_cache(maxsize=1024)
def takes_reference(policy: Policy) -> bool:
    """Whether it compares with reference material."""
    return not isinstance(policy.init_reference(), NoReference)


def apply_effect(policy: Policy, state: State, effect: Effect, *, is_live: bool) -> State:
    """The state after one effect. A replay (is_live false) skips pending decisions: those open at its end are added then."""
    match effect:
        case Learn(seen):
            return states.fold(policy, state, seen if is_live else seen.never_pending())
        case AddPending(arm, features) if is_live:
            return states.with_arm(state, arm, policy.add_pending(state.arms[arm], features))
        case RemovePending(arm, features) if is_live:
            return states.with_arm(state, arm, policy.remove_pending(state.arms[arm], features))
        case GrowArms():
            return states.add_arm(policy, state)
        case Retire(arms):
            return replace(state, retired=arms)
        case Reset(arm, offset):
            return states.reset_arm(policy, state, arm, offset=offset)
        case Amend(change):
            return states.amend(policy, state, change)
    return state


def takes_features(policy: Policy, features: Tensor) -> bool:
    """Whether a policy can decide on these features, and learn from an outcome with them."""
    if not len(features):
        return not policy.contextual
    try:
        policy.check_context(Context(allowed=(True,), features=features))
    except FieldError:
        return False
    return True


def can_learn(policy: Policy, state: State, effect: Effect) -> bool:
    """Whether an effect of a log that was written for another policy can be applied: by the checks that its own requests would
    have met.
    """
    match effect:
        case Learn(seen) if seen.arm == REFERENCE:
            frozen = policy.reference_frozen and any(arm.pulls for arm in state.arms)
            if frozen or not takes_reference(policy):
                return False
            try:
                policy.check_reference(state, seen)
            except FieldError:
                return False
        case Learn(seen, has_reward):
            lacking = ("reward" in policy.needs and not has_reward) or ("output" in policy.needs and not len(seen.output))
            if lacking or not takes_features(policy, seen.features):
                return False
            try:
                policy.check_observation(seen, state=state)
            except FieldError:
                return False
        case AddPending(_, features) | RemovePending(_, features):
            return takes_features(policy, features)
        case Amend(change):
            return _can_amend(policy, change)
    return True


def _can_amend(policy: Policy, change: Amendment) -> bool:
    """Whether it has learned the outcome that changes, and can learn what it becomes."""
    if policy.not_amendable or not takes_features(policy, change.features):
        return False
    if "output" in policy.needs:
        return change.has_output
    for reward in (change.old[0], change.new[0]):
        if math.isnan(reward):
            continue
        try:
            policy.check_observation(Observation(arm=change.arm, features=change.features, reward=reward))
        except FieldError:
            return False
    return True


def check_distribution(row: Sequence[float], context: Context, policy: Policy) -> None:
    """Raise unless the row is a distribution over the allowed arms: a NaN in the log could never be read back."""
    total = sum(row)
    sound = abs(total - 1.0) < 1e-9 or total == 0.0
    forbidden = itertools.compress(row, map(operator.not_, context.allowed))
    if not sound or min(row) < 0.0 or len(row) != len(context.allowed) or any(forbidden):
        raise BanditError(f"{policy.kind} gave weights that are no distribution over the allowed arms")


def _is_of_one_decision(numbered: tuple[int, Effect]) -> bool:
    """Whether an effect concerns a single decision and nothing but its arm."""
    effect = numbered[1]
    return isinstance(effect, AddPending | RemovePending) or (isinstance(effect, Learn) and effect.observation.arm != REFERENCE)


@dataclass(frozen=True)
class Learned:
    """What one policy made of a log.

    number: of the policy (`events.FIRST`).  is_own: the log was written for it alone, so that nothing is left out.
    left: outcomes that it could not learn.  failure: why it learns nothing more; "" = it learns.
    """

    number: int
    policy: Policy
    state: State
    is_own: bool = False
    left: int = 0
    failure: str = ""

    @staticmethod
    def start(
        number: int,
        policy: Policy,
        *,
        arms: int,
        retired: frozenset[int] = frozenset(),
        is_own: bool = False,
        since: int = 0,
        layout: int,
    ) -> Learned:
        """Before the first outcome. arms: how many there are.  since: the offset from which on it learns.  layout: the log's."""
        offsets = (since,) * arms if since else ()
        state = replace(states.start(policy, arms=arms, layout=layout), retired=retired, since=offsets, recent_since=offsets)
        return Learned(number, policy, state, is_own)

    def fold(self, log: Log, effects: Sequence[tuple[int, Effect]], *, is_live: bool) -> Learned:
        """After these effects, (offset, effect) in log order; the result does not depend on the read batches.

        Raises the damage that an effect means which cannot be applied.
        """
        if not self.is_own:
            return self._fold_what_it_can(log, effects, is_live=is_live)
        state, policy = self.state, self.policy
        if not is_live and not policy.arms_independent:
            return replace(self, state=self._one_by_one(log, state, effects, is_live=False))
        # Between two effects that concern more than one decision (an arm that grows, a reset), what comes together is folded
        # together: pending decisions, and outcomes where the policy updates arms independently.
        for is_of_one, run in itertools.groupby(effects, key=_is_of_one_decision):
            several = list(run)
            if not is_of_one or len(several) == 1:
                state = self._one_by_one(log, state, several, is_live=is_live)
            elif is_live:
                state = self._settled(log, state, several)
            else:
                state = self._by_arm(log, state, several, is_live=False)
        return replace(self, state=state)

    def _settled(self, log: Log, state: State, effects: Sequence[tuple[int, Effect]]) -> State:
        """Apply effects of single decisions, live. One that is made and closed among them is never pending: the sums are the
        same, and its row costs one update of what is derived instead of two.
        """
        made = {offset for offset, effect in effects if isinstance(effect, AddPending)}
        released, learned, added = list[tuple[int, Effect]](), list[tuple[int, Effect]](), list[tuple[int, Effect]]()
        closed = set[int]()
        for offset, effect in effects:
            match effect:
                case AddPending():
                    added.append((offset, effect))
                case RemovePending(decision=decision):
                    if decision in made:
                        closed.add(decision)
                    else:
                        released.append((offset, effect))
                case Learn(seen, decision=decision):
                    was_made = seen.was_pending and decision in made
                    closed |= {decision} if was_made else set()
                    learned.append((offset, replace(effect, observation=seen.never_pending()) if was_made else effect))
        left = [one for one in added if one[0] not in closed] if closed else added
        several = self._by_arm if self.policy.arms_independent else self._one_by_one
        state = self._one_by_one(log, state, released, is_live=True)
        state = (several if len(learned) > 1 else self._one_by_one)(log, state, learned, is_live=True)
        return (self._by_arm if len(left) > 1 else self._one_by_one)(log, state, left, is_live=True)

    def _one_by_one(self, log: Log, state: State, effects: Sequence[tuple[int, Effect]], *, is_live: bool) -> State:
        for offset, effect in effects:
            if isinstance(effect, Reset) and effect.policy != self.number:
                continue
            try:
                state = apply_effect(self.policy, state, effect, is_live=is_live)
            except Exception as error:
                raise damage_at(log, offset, error) from error
        return state

    def _by_arm(self, log: Log, state: State, effects: Sequence[tuple[int, Effect]], *, is_live: bool) -> State:
        """Apply a run of effects arm by arm; on failure one by one, so that the error names the entry."""
        by_arm: dict[int, list[Any]] = {}
        for _, effect in effects:
            match effect:
                case Learn(seen) if seen.arm != REFERENCE:
                    by_arm.setdefault(seen.arm, []).append(seen if is_live else seen.never_pending())
                case AddPending() | RemovePending() if not is_live:
                    pass
                case AddPending(arm, features):
                    by_arm.setdefault(arm, []).append(features)
                case _:
                    return self._one_by_one(log, state, effects, is_live=is_live)
        arms, policy = list(state.arms), self.policy
        try:
            for index, several in by_arm.items():
                learns = isinstance(several[0], Observation)
                arms[index] = (
                    policy.update_many(state, several) if learns else policy.add_pending_many(state.arms[index], several)
                )
        except Exception:
            return self._one_by_one(log, state, effects, is_live=is_live)
        return states.with_arms(state, arms)

    def _fold_what_it_can(self, log: Log, effects: Sequence[tuple[int, Effect]], *, is_live: bool) -> Learned:
        state, left = self.state, self.left
        for offset, effect in effects:
            if can_learn(self.policy, state, effect):
                state = self._one_by_one(log, state, [(offset, effect)], is_live=is_live)
            else:
                left += isinstance(effect, Learn) and effect.observation.arm != REFERENCE
        return replace(self, state=state, left=left)

    def fold_safely(self, log: Log, effects: Sequence[tuple[int, Effect]], *, is_live: bool) -> Learned:
        """`fold` of a shadow: one that cannot be folded learns nothing more, and the bandit goes on."""
        if self.failure:
            return self
        try:
            return self.fold(log, effects, is_live=is_live)
        except Exception as error:
            logger.error("a shadow learns nothing more", extra={"bandit": log.name, "policy": self.number, "reason": str(error)})
            return replace(self, failure=str(error))

    def with_pending(self, log: Log, decisions: Sequence[OpenDecision]) -> Learned:
        """With open decisions added as pending."""
        if self.failure:
            return self
        state = self.state
        for decision in decisions:
            features = events.vector_tensor(decision.features)
            if not self.is_own and not takes_features(self.policy, features):
                continue
            try:
                arm = self.policy.add_pending(state.arms[decision.arm], features)
            except Exception as error:
                raise damage_at(log, decision.offset, error) from error
            state = states.with_arm(state, decision.arm, arm)
        return replace(self, state=state)
