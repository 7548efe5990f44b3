"""Whether an estimate answers the question, by thresholds that are stated.

cannot_answer   the log could not show what the policy would do: support below .99, or an effective sample below 50,
or weights whose mean is 3 standard errors away from the supported mass (propensities that are not true)
bounded         some decisions were logged without their distribution: the value is known within bounds alone
wide            the interval is wider than two fifths of a standard deviation of the reward
answer          else
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from bandits.evaluation.estimators import LoggedDecisions
from bandits.evaluation.intervals import LARGEST_WEIGHT, Interval

LEAST_SUPPORT = 0.99
LEAST_EFFECTIVE_SAMPLE = 50.0
MOST_ERRORS = 3.0
WIDE = 0.4
"""Of the rewards' standard deviation."""


class Verdict(NamedTuple):
    """What to make of an estimate. reason: one sentence, with the remedy."""

    kind: Literal["answer", "wide", "bounded", "cannot_answer"]
    reason: str


def judge(log: LoggedDecisions, interval: Interval, *, without_weights: int = 0) -> Verdict:
    """The verdict on the interval of an estimate. without_weights: outcomes whose decision has no logged distribution."""
    support = log.supported_above(1.0 / LARGEST_WEIGHT)
    if support < LEAST_SUPPORT:
        return Verdict(
            "cannot_answer",
            f"{1.0 - support:.1%} of what it would choose has a logged probability below 1/{LARGEST_WEIGHT:g}: the log cannot "
            "show what would have come of it. Set exploration_floor (.01 is enough) and evaluate what is logged from then on.",
        )
    error = log.weight_error
    off = abs(float(log.weights.mean()) - float(log.supported.mean()))
    if off > MOST_ERRORS * error and off > 1e-9:
        return Verdict(
            "cannot_answer",
            f"the mean weight is {log.weights.mean():.3f} where {log.supported.mean():.3f} is expected, {off / error:.1f} "
            "standard errors off: the arms were not drawn with the probabilities that the log has.",
        )
    if log.effective_sample < LEAST_EFFECTIVE_SAMPLE:
        return Verdict(
            "cannot_answer",
            f"the log says as much as {log.effective_sample:.0f} decisions of this policy would, and {LEAST_EFFECTIVE_SAMPLE:g} "
            "are needed: wait for more, or evaluate a policy that is nearer to the one that decides.",
        )
    if without_weights:
        return Verdict("bounded", f"{without_weights} outcomes have no logged distribution and are left out.")
    spread = float(log.rewards.std())
    if interval.high - interval.low > WIDE * spread:
        return Verdict(
            "wide", f"the interval is {(interval.high - interval.low) / spread:.2f} standard deviations wide: wait for more."
        )
    return Verdict("answer", "")
