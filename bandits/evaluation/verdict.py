"""Whether an estimate answers the question, by thresholds that are stated.

cannot_answer   the log could not show what the policy would do: support below .99, or an effective sample below 50,
or weights whose mean is 3 standard errors away from the supported mass (propensities that are not true)
bounded         some decisions were logged without their distribution: the value is known within bounds alone
wide            the interval is wider than two fifths of a standard deviation of the reward
answer          else
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from bandits.evaluation.intervals import Interval
from bandits.evaluation.moments import LARGEST_WEIGHT, Moments

LEAST_SUPPORT = 0.99
LEAST_EFFECTIVE_SAMPLE = 50.0
MOST_ERRORS = 3.0
WIDE = 0.4
"""Of the rewards' standard deviation."""


class Verdict(NamedTuple):
    """What to make of an estimate. reason: one sentence, with the remedy."""

    kind: Literal["answer", "wide", "bounded", "cannot_answer"]
    reason: str


class Diagnostics(NamedTuple):
    """The diagnostics of one policy; see `Moments`.

    supported: what the mean weight should be.  largest: of the weights.  percentile: of 99 % of the weights, to 9 %.
    spread: of the rewards.
    """

    support: float
    supported: float
    mean_weight: float
    weight_error: float
    largest: float
    percentile: float
    effective_sample: float
    spread: float

    @staticmethod
    def of(moments: Moments) -> list[Diagnostics]:
        """Of every policy."""
        supported, percentiles = moments.supported / moments.count, moments.weight_quantile(0.99)
        return [
            Diagnostics(
                float(moments.support[policy]),
                float(supported[policy]),
                float(moments.mean_weight[policy]),
                float(moments.weight_error[policy]),
                float(moments.largest[policy]),
                float(percentiles[policy]),
                float(moments.effective_sample[policy]),
                moments.spread,
            )
            for policy in range(moments.policies)
        ]


def judge(found: Diagnostics, interval: Interval, *, without_weights: int = 0) -> Verdict:
    """The verdict on the interval of an estimate. without_weights: outcomes whose decision has no logged distribution."""
    if found.support < LEAST_SUPPORT:
        return Verdict(
            "cannot_answer",
            f"{1.0 - found.support:.1%} of what it would choose has a logged probability below 1/{LARGEST_WEIGHT:g}: the log "
            "cannot show what would have come of it. Set exploration_floor (.01 is enough) and evaluate what is logged from then "
            "on.",
        )
    off = abs(found.mean_weight - found.supported)
    if off > MOST_ERRORS * found.weight_error and off > 1e-9:
        how_far = f"{off / found.weight_error:.1f} standard errors off" if found.weight_error else "and nothing could vary"
        return Verdict(
            "cannot_answer",
            f"the mean weight is {found.mean_weight:.3f} where {found.supported:.3f} is expected, {how_far}: the arms were not "
            "drawn with the probabilities that the log has.",
        )
    if found.effective_sample < LEAST_EFFECTIVE_SAMPLE:
        return Verdict(
            "cannot_answer",
            f"the log says as much as {found.effective_sample:.0f} decisions of this policy would, and "
            f"{LEAST_EFFECTIVE_SAMPLE:g} are needed: wait for more, or evaluate a policy that is nearer to the one that decides.",
        )
    if without_weights:
        return Verdict("bounded", f"{without_weights} outcomes have no logged distribution and are left out.")
    width = interval.high - interval.low
    if width > WIDE * found.spread:
        wide = f"{width / found.spread:.2f} standard deviations" if found.spread else f"{width:.3g}"
        return Verdict("wide", f"the interval is {wide} wide: wait for more.")
    return Verdict("answer", "")
