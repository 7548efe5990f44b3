"""The health of a bandit: checks of what it learns from and how it decides, each with a sentence that names the fix.

    Subject (policy, ledger, report) ──> checks ──> Check ...        notices(subject): those of them that the owner should know of

Read off the folded log alone (and, for the time since the last outcome, the clock), so every replica says the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import msgspec

from bandits import drift
from bandits.objective import COST, REWARD
from bandits.types import Policy
from service.engine.ledger import RECENT, ArmRecord, Ledger
from service.engine.notices import notices_of_arms, notices_of_rewards
from service.engine.tallies import LEAST_EFFECTIVE, MAX_WEIGHT, Gain

Status = Literal["ok", "warn", "alarm"]
SEVERITY: tuple[Status, ...] = ("ok", "warn", "alarm")

ENOUGH = 20
"""Outcomes from which on it says something that a signal never came, or that all rewards are alike."""
ENOUGH_ERRORS = 100
BLIND = ("random", "one-arm")
"""Policies that choose the same way whatever was learned."""
STARVED_AFTER = 50
"""Decisions per active arm after which an arm without an outcome is starved."""
MISSING_WARN, MISSING_ALARM = 0.1, 0.5
"""Share of decisions that expire."""
FAILING = 0.1
"""Share of the latest outcomes of an arm with an error."""
RARE = 0.1
"""Share of outcomes below which a signal comes rarely."""
OFF, RELATIVE = 0.5, (0.5, 2.0)
"""Of calibration: mean error in deviations, and the range of the deviation over the noise that was learned."""
LOSS, ENOUGH_TO_LOSE = 0.1, 500
"""A loss against the best fixed arm is a warning beyond this share of the deviation of rewards, once the cost of finding out
which arm is best has had so many outcomes to fade.
"""
DROWNED = 1e-3
"""Of the widest weighted signal: a reward that moves the objective less decides nothing."""
TOO_SMALL = 1e-150
"""A difference of rewards whose square is next to no number."""
OVERSPENT = 1.1
RECENT_ALARM = 1000
"""Outcomes for which an alarm of the detector is reported."""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. value: a number, an object by arm or signal, or null where nothing is known."""

    name: str
    status: Status
    value: Any
    detail: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A bandit as the checks see it.

    report: of the policy.  lost: indices of arms whose numbers are not finite (`Policy.arms_without_estimate`).
    now: None leaves out what depends on the clock.
    """

    policy: Policy
    ledger: Ledger
    report: Mapping[str, Any] = field(default_factory=dict)
    lost: Sequence[int] = ()
    now: datetime | None = None

    @cached_property
    def active(self) -> list[int]:
        """Indices of the arms that can be chosen."""
        return [index for index, arm in enumerate(self.ledger.arms) if arm.active]

    @cached_property
    def outcomes(self) -> int:
        """Outcomes learned, of all arms."""
        return sum(arm.outcomes for arm in self.ledger.arms)

    @property
    def learns_reward(self) -> bool:
        """Whether the policy learns a reward."""
        return "reward" in self.policy.needs

    @cached_property
    def gain(self) -> Gain | None:
        """The gain over the best fixed arm; None where too little is known."""
        return self.ledger.tallies.gain(self.active, is_contextual=self.ledger.created.dim > 0)

    def arm(self, index: int) -> ArmRecord:
        """What the log says of an arm."""
        return self.ledger.arms[index]

    def names(self, indices: Sequence[int]) -> str:
        """Names of arms for a sentence: the first five."""
        shown = ", ".join(repr(self.arm(index).name) for index in indices[:5])
        return shown if len(indices) <= 5 else f"{shown} and {len(indices) - 5} more"

    def by_arm(self, values: Mapping[int, Any]) -> dict[str, Any]:
        """Arm index -> value as name -> value."""
        return {self.arm(index).name: value for index, value in values.items()}


def examine(subject: Subject) -> list[Check]:
    """Every check that applies to this bandit."""
    found = (check(subject) for check in CHECKS)
    return [check for check in found if check is not None]


def worst(checks: Sequence[Check]) -> Status:
    """The status of the whole."""
    return max((check.status for check in checks), key=SEVERITY.index, default="ok")


def notices(subject: Subject) -> list[str]:
    """Of a budget, of signals, of rewards and of drift, where the owner should know of them."""
    found = (check(subject) for check in NOTICED)
    return [f"{check.detail} {check.fix}" for check in found if check is not None and check.status != "ok"]


# -- what is chosen --------------------------------------------------------------------------------------------------------------


def _arms(subject: Subject) -> Check:
    count = len(subject.active)
    status: Status = "ok" if count > 1 else "warn" if count else "alarm"
    detail = {0: "No arm is active, so there is nothing to decide.", 1: "One arm is active: there is nothing to choose."}
    fix = "Add arms with PUT /v1/bandits/{name}/arms/{arm}."
    return Check("arms", status, count, detail.get(count, f"{count} arms can be chosen."), fix)


def _estimates(subject: Subject) -> Check:
    found = notices_of_arms(subject.policy, subject.ledger.arms, subject.lost)
    detail = " ".join(found) or "The numbers of every arm are finite."
    fix = "Create another bandit, with hyperparameters or a scale for which its numbers stay finite."
    return Check("estimates", "alarm" if found else "ok", len(found), detail, fix)


def _entropy(subject: Subject) -> Check:
    chosen, count = Counter(subject.ledger.recent), len(subject.ledger.recent)
    fix = "Post the rewards that tell arms apart, weigh them in objective, or take another policy."
    if not count or len(subject.active) < 2:
        return Check("entropy", "ok", None, "There is no choice to look at yet.", fix)
    entropy = -sum(made / count * math.log(made / count) for made in chosen.values())
    most = math.log(len(subject.active))
    value = min(entropy / most, 1.0)
    detail = f"The last {count} decisions spread over the arms as {math.exp(entropy):.3g} equally likely ones would."
    spread = len(subject.active) - 1
    # 2 n (log K - entropy) is chi-squared with K - 1 degrees of freedom where all arms are equally likely
    uniform = count == RECENT and 2 * count * (most - entropy) < spread + 2 * math.sqrt(2 * spread)
    # where the prompt decides, equal shares are no sign: half of the prompts may suit either arm
    learns = subject.learns_reward and subject.policy.kind not in BLIND and not subject.policy.contextual
    if uniform and learns and subject.outcomes >= RECENT:
        return Check("entropy", "warn", value, f"{detail} Choices are as good as random: nothing that was learned decides.", fix)
    return Check("entropy", "ok", value, detail, fix)


def _starved(subject: Subject) -> Check:
    enough = STARVED_AFTER * len(subject.active)
    late = sum(subject.arm(index).pulls for index in subject.active) >= enough
    starved = [index for index in subject.active if late and not subject.arm(index).outcomes]
    detail = "Every active arm has an outcome, or decisions have only begun."
    if starved:
        detail = f"After {enough} decisions and more there is no outcome of {subject.names(starved)}."
    fix = "Report the outcomes of these arms, allow them in decisions, or retire them."
    return Check("starved_arms", "warn" if starved else "ok", [subject.arm(index).name for index in starved], detail, fix)


# -- outcomes --------------------------------------------------------------------------------------------------------------------


def _missing(subject: Subject) -> Check:
    missing, live = subject.ledger.tallies.missing, subject.ledger.live
    fix = f"Report every outcome within timeout_s ({live.timeout_s:g} s), or set a longer one."
    if not missing.count:
        return Check("missing_outcomes", "ok", None, "No decision has closed yet.", fix)
    status: Status = "ok"
    if missing.count >= ENOUGH:
        status = "alarm" if missing.mean > MISSING_ALARM else "warn" if missing.mean > MISSING_WARN else "ok"
    detail = f"Of the decisions that closed of late, {missing.mean:.1%} expired without an outcome."
    return Check("missing_outcomes", status, missing.mean, detail, fix)


def _errors(subject: Subject) -> Check | None:
    ledger = subject.ledger
    shares = {i: ledger.tallies.arms[i].failing for i in subject.active}
    if not any(subject.arm(i).errors for i in subject.active):
        return None
    cooling = [i for i in subject.active if subject.now is not None and ledger.is_cooling(i, subject.now)]
    failing = [i for i, share in shares.items() if share.count >= ENOUGH and share.mean > FAILING]
    value = subject.by_arm({i: share.mean for i, share in shares.items() if share.count})
    fix = "See why calls of these models fail; retire an arm that will not be back soon."
    if ledger.live.cooldown is None:
        fix += ' With "cooldown", an arm that fails is left out of decisions for a while.'
    detail = "Of the latest outcomes of each arm, this share had an error."
    if failing:
        detail += f" More than {FAILING:.0%} did of {subject.names(failing)}."
    if cooling:
        detail += f" Left out of decisions after errors: {subject.names(cooling)}."
    if cooling and len(cooling) == len(subject.active):
        detail += " These are all arms, so they are chosen all the same."
        return Check("errors", "alarm", value, detail, fix)
    return Check("errors", "warn" if failing or cooling else "ok", value, detail, fix)


def _last_outcome(subject: Subject) -> Check | None:
    if subject.now is None:
        return None
    ledger, last = subject.ledger, subject.ledger.tallies.last_outcome
    fix = "See whether what reports outcomes still runs, and reaches this service."
    if ledger.tallies.last_decision is None:
        return Check("last_outcome", "ok", None, "No decision was made yet.", fix)
    seconds = (subject.now - (last or ledger.created.at)).total_seconds()
    is_late = seconds > ledger.live.timeout_s and (last is None or ledger.tallies.last_decision > last)
    detail = f"The last outcome came {seconds:.0f} s ago." if last else "No outcome was ever reported."
    if is_late:
        detail += " Decisions were made since, and the time to report one (timeout_s) has passed."
    return Check("last_outcome", "warn" if is_late else "ok", None if last is None else seconds, detail, fix)


def _reward_scale(subject: Subject) -> Check | None:
    if not subject.learns_reward or subject.policy.reward_scale is None:
        return None
    low, high = subject.policy.reward_scale
    found = notices_of_rewards(subject.policy, subject.ledger)
    detail = " ".join(found) or f"Rewards fit the scale that {subject.policy.kind} is set for, [{low:g}, {high:g}]."
    fix = "Post rewards on that scale, or create a bandit with the policy `auto`, which takes any."
    return Check("reward_scale", "warn" if found else "ok", subject.ledger.reward_range, detail, fix)


def _reward_range(subject: Subject) -> Check | None:
    seen = subject.ledger.reward_range
    if not subject.learns_reward:
        return None
    fix = "Post a reward that differs between good and bad answers."
    if seen is None:
        return Check("reward_range", "ok", None, "No reward was learned yet.", fix)
    count = sum(arm.rewards for arm in subject.ledger.arms)
    if seen[0] == seen[1] and count >= ENOUGH:
        return Check(
            "reward_range", "warn", seen, f"All {count} rewards so far are {seen[0]:g}: they tell no arm from another.", fix
        )
    detail = f"Rewards from {seen[0]:g} to {seen[1]:g} were learned"
    if 0.0 < seen[1] - seen[0] < TOO_SMALL:
        detail += ": they differ by so little that the square of it is next to 0, and are learned badly or not at all."
        return Check("reward_range", "warn", seen, detail, "Post rewards multiplied by a constant, in another bandit.")
    if (steps := subject.ledger.tallies.steps.outlying()) is not None:
        detail += (
            f": two in a row are apart by some {steps[0]:.1g}, and a few by up to {steps[1]:.1g}. Beside so large a reward all "
            "others are alike, and what tells arms apart is found late or never."
        )
        fix = (
            "Cap rewards or take their logarithm before you post them, in another bandit: this one remembers what it has learned "
            "(one with forget_half_life drops it in time)."
        )
        return Check("reward_range", "warn", seen, detail, fix)
    return Check("reward_range", "ok", seen, f"{detail}.", fix)


def _drift(subject: Subject) -> Check | None:
    if not subject.policy.watches_drift and not subject.ledger.alarms:
        return None
    sums = {i: max(subject.arm(i).surprise[:2]) / drift.LIMIT for i in subject.active}
    recent = [alarm for alarm in subject.ledger.alarms if subject.outcomes - alarm.outcomes <= RECENT_ALARM]
    fix = (
        "See what changed in that model or its prompts. Arms that get better while they are not played are found only with an "
        "exploration_floor above 0."
    )
    if not recent:
        detail = "No arm returns something else than before; 1 is the limit of the detector."
        return Check("drift", "ok", subject.by_arm(sums), detail, fix)
    arms = subject.names(sorted({alarm.arm for alarm in recent}))
    detail = (
        f"In the last {RECENT_ALARM:,} outcomes the detector found that rewards are no longer what they were: {arms} "
        f"(last at offset {recent[-1].offset}). What was known of it before was dropped, and it is learned again."
    )
    return Check("drift", "warn", subject.by_arm(sums), detail, fix)


# -- what was learned ------------------------------------------------------------------------------------------------------------


def calibration(subject: Subject) -> dict[str, Any] | None:
    """Rewards against what was estimated for the played arm at its decision; null where no estimate was logged.

    relative_deviation: to the noise that the policy has learned, 1 where it is right; null where it learns none.
    """
    errors, noise = subject.ledger.tallies.errors, subject.report.get("noise")
    if not subject.learns_reward or not errors.count:
        return None
    return {
        "outcomes": errors.count,
        "mean_error": errors.mean,
        "deviation": errors.deviation,
        "relative_deviation": errors.deviation / noise if noise else None,
    }


def _calibration(subject: Subject) -> Check | None:
    if not subject.learns_reward or subject.policy.episodic:
        return None
    found = calibration(subject)
    fix = "Look at drift and at the scale of the rewards; where neither explains it, compare with the policy `auto`."
    if found is None:
        return Check("calibration", "ok", None, "No reward can be compared with an estimate yet.", fix)
    errors, relative = subject.ledger.tallies.errors, found["relative_deviation"]
    detail = f"Rewards were {errors.mean:+.3g} from what was estimated in the mean, with a deviation of {errors.deviation:.3g}"
    detail += "." if relative is None else f", {relative:.2f} of the noise that was learned."
    is_off = abs(errors.mean) > max(OFF * errors.deviation, 1e-9)
    is_wrong = relative is not None and not RELATIVE[0] <= relative <= RELATIVE[1]
    is_bad = errors.count >= ENOUGH_ERRORS and (is_off or is_wrong)
    return Check("calibration", "warn" if is_bad else "ok", found, detail, fix)


def _variance(subject: Subject) -> Check | None:
    if "variance" not in subject.report:
        return None
    shares = subject.report["variance"]
    fix = "If noise is nearly all of it, post a reward that is closer to what you want of an answer."
    if shares is None:
        return Check("variance", "ok", None, "Too little is known to say where differences of rewards come from.", fix)
    said = {"arm": "the arm", "prompt": "the prompt", "arm_and_prompt": "the prompt's choice of the arm", "noise": "noise"}
    parts = ", ".join(f"{shares[name]:.0%} {words}" for name, words in said.items())
    return Check("variance", "ok", shares, f"Differences of rewards come from: {parts}.", fix)


def _prompt_pays(subject: Subject) -> Check | None:
    if "trust" not in subject.report:
        return None
    trust = subject.report["trust"]
    fix = "If it stays near 0.1, leave the prompt out: the best fixed arm is as good. Otherwise nothing needs to be done."
    if trust is None:
        detail = (
            "The bandit takes no prompt."
            if not subject.policy.contextual
            else "Too little is known to say, or all prompts are alike."
        )
        return Check("prompt_pays", "ok", None, detail, fix)
    detail = f"The probability that the prompt decides which arm is best is {trust:.2f}."
    return Check("prompt_pays", "ok", trust, detail, fix)


def gain(subject: Subject) -> dict[str, Any] | None:
    """What was earned per decision beyond the best fixed arm, with a 95 % interval; null where too little is known."""
    found = subject.gain if subject.learns_reward else None
    if found is None:
        return None
    return {"value": found.value, "interval": list(found.interval), "best_fixed": subject.arm(found.best).name}


def _gain(subject: Subject) -> Check | None:
    if not subject.learns_reward:
        return None
    found, tallies = subject.gain, subject.ledger.tallies
    where = "Set" if hasattr(subject.policy, "exploration_floor") else "Take the policy `auto`, and set"
    fix = f"{where} exploration_floor to 0.01: then every arm is drawn for all prompts now and then, and can be compared."
    if found is None:
        enough = tallies.counted >= LEAST_EFFECTIVE
        reason = (
            "no active arm was drawn widely enough to know what it alone would have earned"
            if enough
            else f"{tallies.counted} rewards with a propensity are too few, at least {LEAST_EFFECTIVE:.0f} are needed"
        )
        return Check("gain", "ok", None, f"The gain over the best fixed arm is not known: {reason}.", fix)
    low, high = found.interval
    detail = (
        f"Decisions earned {found.value:+.3g} each beyond always {subject.arm(found.best).name!r}, the best fixed arm "
        f"(95 %: {low:+.3g} to {high:+.3g}; weights of outcomes are capped at {MAX_WEIGHT:,.0f})."
    )
    if found.skipped:
        detail += f" Too little is known of {subject.names(found.skipped)} to compare with."
    if high < -LOSS * found.deviation and tallies.counted >= ENOUGH_TO_LOSE:
        fix = "Take the policy `auto`, which is made not to be worse, or less exploration."
        return Check("gain", "warn", gain(subject), detail, fix)
    return Check("gain", "ok", gain(subject), detail, fix)


# -- objectives ------------------------------------------------------------------------------------------------------------------


def _budget(subject: Subject) -> Check | None:
    ledger = subject.ledger
    account = ledger.spending
    if account is None:
        return None
    signal, allowed = account.budget.signal, account.budget.per_decision
    value = {
        "signal": signal,
        "running": account.running,
        "per_decision": allowed,
        "multiplier": ledger.multipliers()[signal],
        "feasible": account.is_feasible,
    }
    fix = f"Raise budget.per_decision, or add an arm with a smaller {signal}."
    if account.running is None:
        return Check("budget", "ok", value, f"No outcome has carried {signal} since the budget was set.", fix)
    detail = f"The running mean of {signal} is {account.running:.4g}, and {allowed:.4g} per decision is allowed."
    if not account.is_feasible:
        detail += " No mixture of the arms that were tried holds the budget, so nearly the cheapest is played."
        return Check("budget", "alarm", value, detail, fix)
    over = account.count >= ENOUGH_ERRORS and account.running > OVERSPENT * allowed
    return Check("budget", "warn" if over else "ok", value, detail, fix)


def _signals(subject: Subject) -> Check | None:
    """Of the declared signals beside reward and cost."""
    learned, tallies = subject.ledger.created.learned, subject.ledger.tallies
    declared = [(k, name) for k, name in enumerate(learned) if name not in (REWARD, COST)]
    if not declared:
        return None
    outcomes = sum(arm.outcomes for arm in tallies.arms)
    carried = {name: sum(arm.carried[k] for arm in tallies.arms) for k, name in declared}
    value = {name: count / outcomes if outcomes else None for name, count in carried.items()}
    said = []
    for k, name in declared if outcomes >= ENOUGH else ():
        lacking = [i for i in subject.active if tallies.arms[i].outcomes >= ENOUGH and not tallies.arms[i].carried[k]]
        if not carried[name]:
            said.append(f"The signal {name!r} was declared, and none of {outcomes} outcomes carried it: it counts 0.")
        elif lacking:
            said.append(
                f"The signal {name!r} never came with outcomes of {subject.names(lacking)}: what is assumed of them is a guess."
            )
        elif carried[name] < RARE * outcomes:
            said.append(f"The signal {name!r} came with {carried[name]} of {outcomes} outcomes: it is learned from these alone.")
        elif tallies.lowest[k] == tallies.highest[k] and carried[name] >= ENOUGH:
            said.append(f"The signal {name!r} was {tallies.lowest[k]:g} every time: it tells no arm from another.")
    fix = "Post these signals with the outcomes of every arm, or leave them out of objective, budget and signals."
    return Check("signals", "warn" if said else "ok", value, " ".join(said) or "Declared signals come as they should.", fix)


def _objective(subject: Subject) -> Check | None:
    """Whether the weights leave a difference between arms: how far each signal moves the objective."""
    ledger = subject.ledger
    if not subject.learns_reward or (ledger.live.objective == {REWARD: 1.0} and len(ledger.created.learned) == 1):
        return None
    fix = "Give every signal that matters a weight in objective, by which differences of signals are of one size."
    moves: dict[str, float | None] = {}
    for k, name in enumerate(ledger.created.learned):
        low, high = ledger.tallies.lowest[k], ledger.tallies.highest[k]
        if weight := ledger.live.objective.get(name, 0.0):
            moves[name] = None if low is None or high is None else abs(weight) * (high - low)
    if not any(ledger.live.objective.values()):
        return Check("objective", "warn", moves, "Every weight of objective is 0: all arms are equal, and chosen at random.", fix)
    if ledger.prices_per == "outcome" or any(subject.arm(index).price for index in subject.active):
        compared = {name: moved for name, moved in moves.items() if name != COST}  # what is weighed is not what was learned
    else:
        compared = moves
    widest = max((moved or 0.0 for moved in compared.values()), default=0.0)
    reward = moves.get(REWARD)
    if reward is not None and subject.outcomes >= ENOUGH and reward < DROWNED * widest:
        name = max(compared, key=lambda name: compared[name] or 0.0)
        detail = (
            f"Rewards move the objective by {reward:.3g}, and {name!r} by {widest:.3g}: beside it the reward decides nothing."
        )
        return Check("objective", "warn", moves, detail, fix)
    return Check("objective", "ok", moves, "How far each weighted signal moves the objective, between its extremes.", fix)


def _cost_ratio(subject: Subject) -> Check | None:
    """Of learned costs with prices per outcome."""
    ledger = subject.ledger
    if ledger.prices_per != "outcome" or COST not in ledger.created.learned:
        return None
    k = ledger.created.learned.index(COST)
    ratios, unpriced = {}, []
    for index in subject.active:
        arm, tally = subject.arm(index), ledger.tallies.arms[index]
        learned = tally.totals[k] / tally.carried[k] if tally.carried[k] else None
        has_price = arm.price > 0.0
        expected = None if learned is None else learned * arm.price if has_price else learned
        ratios[index] = {"ratio": learned if has_price else None, "expected": expected}
        if not has_price:
            unpriced.append(index)
    fix = "Give every arm a price, so that a new one acts on the next decision."
    if unpriced and len(unpriced) < len(subject.active):
        detail = f"There is no price of {subject.names(unpriced)}, so its cost is learned as it is posted."
        return Check("cost_ratio", "warn", subject.by_arm(ratios), detail, fix)
    detail = "The expected cost of an arm is its present price times the learned ratio of posted costs to prices."
    return Check("cost_ratio", "ok", subject.by_arm(ratios), detail, fix)


CHECKS: tuple[Callable[[Subject], Check | None], ...] = (
    _arms,
    _estimates,
    _entropy,
    _starved,
    _missing,
    _errors,
    _last_outcome,
    _reward_scale,
    _reward_range,
    _drift,
    _calibration,
    _variance,
    _prompt_pays,
    _gain,
    _budget,
    _signals,
    _objective,
    _cost_ratio,
)
NOTICED = (_budget, _signals, _objective, _reward_range, _drift, _errors)
"""What is also a notice of the bandit."""
