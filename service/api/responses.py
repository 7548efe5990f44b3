"""What the service answers: the shapes, described for the OpenAPI document, and the functions that write them as JSON values.

Writers do not go through the models: a decision is written in microseconds. The tests compare what is written with what is said.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, create_model

from bandits.objective import COST, REWARD
from service.api.change import configuration
from service.api.requests import PARAMETERS, SCORER_FIELDS, YOUNGER
from service.engine.commit import Recorded
from service.engine.evaluations import Record
from service.engine.events import Amended, Created, Decided, Expired, Observed, Partial
from service.engine.health import worst
from service.engine.learner import Learner
from service.engine.ledger import Ledger
from service.engine.outcomes import DecisionHistory
from service.engine.series import OTHER, TRAFFIC_S, ArmCounts, Latest, Row, Selection, merge


class Answer(BaseModel):
    """Nothing but what is described here."""

    model_config = ConfigDict(extra="forbid")


class FieldProblem(Answer):
    """One wrong field."""

    path: str = Field(description="Where in the request, e.g. `arms.0.price`.", examples=["prompt.vector"])
    message: str = Field(description="What is wrong, and how to mend it.", examples=["has 2 numbers, this bandit takes 3"])


class ProblemAnswer(Answer):
    """RFC 9457, sent as `application/problem+json`."""

    type: str = Field(description="Always `about:blank`: the code says it.", examples=["about:blank"])
    title: str = Field(description="The status in words.", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status.", examples=[422])
    code: str = Field(description="Stable machine code.", examples=["invalid_request"])
    detail: str = Field(description="For people.", examples=["prompt.vector: has 2 numbers, this bandit takes 3"])
    errors: list[FieldProblem] = Field(default_factory=list, description="For 422: every wrong field.")
    request_id: str = Field(
        "",
        description="The request's `x-request-id`; not in the items of a batch.",
        examples=["checkout-4711"],
    )


class DecisionAnswer(Answer):
    """The next model to query."""

    id: str | None = Field(description="Post the outcome under this id; null for a dry run.", examples=["request-1"])
    bandit: str = Field(description="Name of the bandit.", examples=["demo"])
    episode: str | None = Field(description="Attempts on one prompt share it; null for a dry run.", examples=["request-1"])
    attempt: int = Field(description="1 for the first decision of the episode.", examples=[1])
    arm: str | None = Field(description="The model to query; null when `stop`.", examples=["small"])
    stop: bool = Field(description="No arm is worth a (further) call.")
    propensity: float | None = Field(
        description="The probability with which this arm was drawn; null where it is that of the session.", examples=[1.0]
    )
    weights: dict[str, float] = Field(
        description="The distribution over the arms, without those that are retired and have nothing open. Of more than 64 arms, "
        "the one that was chosen and the 16 best; `GET .../decisions/{id}` and a `dry_run` show all.",
        examples=[{"small": 1.0, "large": 0.0}],
    )
    scores: dict[str, dict[str, float | dict[str, float | None] | None]] = Field(
        description="Why: the policy's own terms per arm that could be chosen, of the arms of `weights`; with several signals "
        "also `signals`, the estimate of each.",
        examples=[{"small": {"estimate": 0.61, "bonus": 0.2}}],
    )
    multipliers: dict[str, float] = Field(
        default_factory=dict,
        description="Of the signal that has a budget: what was subtracted from its weight. Left out without a budget.",
        examples=[{"cost": 7.3}],
    )
    running: dict[str, float | None] = Field(
        default_factory=dict,
        description="Of the same signal, its mean per decision so far; left out without a budget.",
        examples=[{"cost": 0.0019}],
    )
    session: str = Field("", description="As it was posted; left out where it was not.", examples=["chat-4711"])
    sticky: bool = Field(False, description="The arm is that of the session; left out where it was drawn.")
    chosen_by: str = Field("", description="The decision that has drawn the arm of the session; left out where this one has.")
    cooldown_ignored: bool = Field(
        False, description="Every arm that was allowed cools down after errors, so that was ignored; left out where it is not so."
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="As it was posted; left out where it was not.", examples=[{"team": "search"}]
    )
    offset: int = Field(description="The decision's place in the log.", examples=[2])


class AmendmentShown(Answer):
    """A correction of an outcome."""

    id: str | None = Field(description="The client's; null where it gave none.", examples=["amendment-1"])
    at: str = Field(description="RFC 3339, UTC.", examples=["2026-02-01T09:30:00.123456Z"])
    offset: int = Field(description="Its place in the log.", examples=[17])
    before: dict[str, float | None] = Field(
        description="What it changed, as it was before; null = missing.", examples=[{"thumb": None}]
    )
    after: dict[str, float] = Field(description="The same, as it was after.", examples=[{"thumb": 1.0}])


class DecisionState(DecisionAnswer):
    """A decision with what became of it."""

    state: Literal["open", "partial", "observed", "expired", "cancelled"] = Field(
        description="`partial`: open for its reward, with cost or signals. A stop counts as observed."
    )
    reward: float | None = Field(description="As it is by now; null while open, and where nothing was learned.")
    cost: float | None = Field(
        description="What the call cost, as far as it is known by now; the price where a default reward was learned, null where "
        "nothing was."
    )
    signals: dict[str, float] = Field(description="Further signals, as they are by now.", examples=[{"latency_s": 1.7}])
    amendments: list[AmendmentShown] = Field(description="Corrections of the outcome, in their order.")
    decided_at: str = Field(description="RFC 3339, UTC.", examples=["2026-01-31T12:00:00.123456Z"])
    closed_at: str | None = Field(description="RFC 3339, UTC; null while open.")
    error: str = Field("", description="Why the call failed, as it was posted; left out where it did not.")
    outcome_metadata: dict[str, Any] = Field(
        default_factory=dict, description="That of the outcome, as it was posted; left out where it was not."
    )


class DecisionPage(Answer):
    """Decisions of the log, the newest first."""

    decisions: list[DecisionState] = Field(description="Maybe fewer than `limit`: a request looks at 10,000 entries of the log.")
    next_before: int | None = Field(description="The `before` of the next page; null: there are no older ones.", examples=[4211])
    trimmed_before: int | None = Field(
        description="The first offset that the store still has, where this page ends at it; null elsewhere."
    )


class SignalSums(Answer):
    """The sums of one signal: mean `sum / count`, variance `square_sum / count - mean ** 2`."""

    sum: float = Field(description="Of its values, as they are by now.", examples=[41.5])
    square_sum: float = Field(description="Of their squares.", examples=[31.25])
    count: int = Field(description="Outcomes that carried it, defaults of expired decisions included.", examples=[60])


class ArmSeries(Answer):
    """What happened to one arm in one bucket."""

    decisions: int = Field(description="For this arm.")
    outcomes: int = Field(description="Reported, of this arm.")
    expired: int = Field(description="Decisions that were closed without an outcome.")
    errors: int = Field(description="Outcomes with an error.")
    signals: dict[str, SignalSums] = Field(description="Reward, cost, and the signals that the bandit learns.")
    weight: float | None = Field(description="In the last decision of the bucket that was drawn; null without one.")
    scores: dict[str, float | None] = Field(
        description="Of the same decision, why: as in its `scores`, such as `estimate` and `bonus` (the radius).",
        examples=[{"estimate": 0.61, "bonus": 0.2}],
    )


class SeriesBucket(Answer):
    """What happened in `width_s` seconds."""

    at: str = Field(description="RFC 3339, UTC: its start.", examples=["2026-01-31T12:00:00Z"])
    arms: dict[str, ArmSeries] = Field(description="Of those with something to say.")
    other: ArmSeries | None = Field(description="The arms that are not apart, together; null where nothing happened to them.")


class SeriesAnswer(Answer):
    """A bandit over time, by the times of its log."""

    width_s: int = Field(description="Seconds of a bucket.", examples=[30])
    since: str = Field(description="Where the first bucket begins.", examples=["2026-01-31T12:00:00Z"])
    until: str = Field(description="Where the last one ends.", examples=["2026-01-31T13:00:00Z"])
    offset: int = Field(description="What is counted up to here.", examples=[4711])
    arms: list[str] = Field(description="Those that are apart, at most 64, in the order in which they came.")
    buckets: list[SeriesBucket] = Field(description="One after the other, empty ones too.")


class DecisionsAnswer(Answer):
    """A batch of decisions."""

    decisions: list[DecisionAnswer | ProblemAnswer] = Field(description="In the order of the request.")


class OutcomeAnswer(Answer):
    """The receipt of an outcome."""

    decision: str = Field(description="Id of the decision.", examples=["request-1"])
    reward: float | None = Field(description="The reward that was learned.", examples=[0.83])
    offset: int = Field(description="The outcome's place in the log.", examples=[3])
    duplicate: bool = Field(description="This outcome was learned before; it was not learned again.")
    next: DecisionAnswer | None = Field(
        description="With `next`: the following decision; null where the episode is over, or no arm is active."
    )


class AmendmentAnswer(Answer):
    """The receipt of an amendment, with the outcome after it."""

    decision: str = Field(description="Id of the decision.", examples=["request-1"])
    reward: float | None = Field(description="Null: none is known.", examples=[0.2])
    cost: float | None = Field(description="Null: none is known.", examples=[0.0007])
    signals: dict[str, float] = Field(description="Further signals.", examples=[{"thumb": 1.0}])
    offset: int = Field(description="Its place in the log.", examples=[17])
    duplicate: bool = Field(description="Nothing changed: it was applied before.")


class OutcomesAnswer(Answer):
    """A batch of receipts."""

    outcomes: list[OutcomeAnswer | ProblemAnswer] = Field(description="In the order of the request.")


class ImportAnswer(Answer):
    """The receipt of an import."""

    learned: int = Field(description="Rows that were learned now.", examples=[1024])
    duplicates: int = Field(description="Rows that were learned before; they were not learned again.", examples=[0])
    offset: int = Field(description="Where the last of them is in the log.", examples=[1026])


class ShadowAnswer(Answer):
    """A policy that learns beside the one that decides."""

    name: str = Field(description="Name of the shadow.", examples=["candidate"])
    offset: int = Field(
        description="Of the event that made it what it is: created, or exchanged by a promotion. A promotion names it.",
        examples=[4711],
    )
    policy: dict[str, Any] = Field(description="Kind and hyperparameters.", examples=[{"kind": "pak-ucb"}])
    learns_from: Literal["now", "start"] = Field(description="From the next outcome on, or from the start of the log.")
    created_at: str = Field(description="RFC 3339, UTC, of that event.", examples=["2026-01-31T12:00:00.123456Z"])
    state: Literal["learning", "behind", "failed"] = Field(
        description="behind: it learns the log from the start and is not at its end yet. failed: it learns nothing more."
    )
    failure: str | None = Field(description="Why it learns nothing more.")
    learned_to: int = Field(description="Offset up to which it has learned the log.", examples=[5000])
    outcomes: int = Field(description="Outcomes that it has learned.", examples=[200])
    outcomes_left_out: int = Field(description="Outcomes that it cannot learn, such as those without a prompt.", examples=[0])
    decisions: int = Field(description="Decisions with its weights in the log, since `offset`.", examples=[250])
    left_out: int = Field(
        description="Decisions without: it took longer than 5 ms, or could not decide on the prompt.", examples=[0]
    )
    agreement: float | None = Field(
        description="Mean over these decisions of the mass that its weights share with those that were drawn from: 1 = it is "
        "the same policy, 0 = it never chooses alike.",
        examples=[0.82],
    )
    would_choose: dict[str, float] | None = Field(
        description="Its mean weight of each arm over these decisions.", examples=[{"small": 0.3, "large": 0.7}]
    )
    report: dict[str, Any] | None = Field(description="Its state in its own terms; null while it is behind.")


class ShadowsAnswer(Answer):
    """The shadows of a bandit."""

    shadows: list[ShadowAnswer] = Field(description="By name.")


class PromotionAnswer(Answer):
    """The receipt of a promotion."""

    id: str = Field(description="The client's id.", examples=["promotion-1"])
    shadow: str = Field(description="Name of the shadow, which the policy that decided before has now.", examples=["candidate"])
    offset: int = Field(description="The place of the promotion in the log.", examples=[5001])
    duplicate: bool = Field(description="It was promoted before, and nothing was exchanged again.")


class EvaluatedAnswer(Answer):
    """What the log says of one policy."""

    policy: dict[str, Any] = Field(description="As it was asked for; `arm` of a fixed arm.", examples=[{"kind": "lin-ucb"}])
    label: str = Field(description="For tables.", examples=["lin-ucb"])
    value: float | None = Field(description="Its mean reward, by the first estimator; null where it has none.", examples=[0.62])
    interval: list[float | None] = Field(
        description="By the normal distribution: decisions, and sessions, are taken for independent."
    )
    anytime_interval: list[float | None] | None = Field(
        description="Holds at every number of decisions, whatever was learned; null without `reward_range`."
    )
    support: float = Field(description="Share of its choices with a logged probability of 1/1000 at least.", examples=[1.0])
    effective_sample: float = Field(description="As many decisions of its own would say as much.", examples=[812.4])
    mean_weight: float = Field(description="Near 1 where the arms were drawn as logged.", examples=[1.01])
    max_weight: float = Field(description="Of one decision.", examples=[14.2])
    p99_weight: float = Field(
        description="A weight that 99 % of the decisions do not exceed, at most 9 % above the least such; 0 below 1/256.",
        examples=[3.7],
    )
    verdict: Literal["answer", "wide", "bounded", "cannot_answer"] = Field(description="What to make of it.")
    reason: str = Field(description="Why, and what to do; empty for `answer`.")
    estimates: dict[str, dict[str, Any]] = Field(description="Value and interval of each estimator that was named.")


class EvaluationSummary(Answer):
    """An evaluation without its results."""

    id: str = Field(description="Its id.", examples=["january"])
    state: Literal["queued", "running", "done", "failed"] = Field(description="Where it is.")
    progress: float = Field(description="From 0 to 1.", examples=[0.4])
    created_at: str = Field(description="When it was asked for.")
    finished_at: str | None = Field(description="When it was done, or failed.")
    until: int = Field(description="The last offset that it reads: the end of the log when it was asked for.", examples=[4711])
    failure: str | None = Field(description="Why it failed, and what to do. A failed one keeps its id until it is deleted.")


class EvaluationAnswer(EvaluationSummary):
    """An evaluation; all that follows is null until it is done."""

    request: dict[str, Any] = Field(description="As it was asked for.")
    decisions: int | None = Field(description="Decisions with a reward that were used.", examples=[1840])
    left_out: dict[str, int] | None = Field(description="Why others were not, and how many.", examples=[{"expired": 12}])
    behaviour: EvaluatedAnswer | None = Field(description="The policy that decided, on the same decisions.")
    policies: list[EvaluatedAnswer] | None = Field(description="Those of the request, in its order.")
    fixed_arms: list[EvaluatedAnswer] | None = Field(description="Every arm, played always.")
    best_fixed_arm: EvaluatedAnswer | None = Field(
        description="Chosen on these decisions, so its intervals hold for all arms at once; null where nothing is known of any."
    )


class EvaluationsAnswer(Answer):
    """The evaluations of a bandit."""

    evaluations: list[EvaluationSummary] = Field(description="Newest first, at most 100 of the last 30 days.")


class ReferenceAnswer(Answer):
    """The receipt of reference material."""

    count: int = Field(description="Reference samples so far.", examples=[100])
    offset: int = Field(description="Its place in the log.", examples=[2])


class DigestAnswer(Answer):
    """The folded state at an offset."""

    offset: int = Field(description="What is learned up to here.", examples=[4711])
    sha256: str = Field(description="Of the packed state.", pattern="^[0-9a-f]{64}$")
    layout: int = Field(description="How the log lays out sums; only digests of one layout can be equal.", examples=[2])


class ArmAnswer(BaseModel):
    """What is known of an arm, followed by the policy's own terms."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Its name.", examples=["small"])
    price: float = Field(description="Per call.", examples=[0.0002])
    metadata: dict[str, Any] = Field(description="As it was posted.")
    active: bool = Field(description="False: retired, it is no longer chosen.")
    pulls: int = Field(description="Decisions for it.")
    outcomes: int = Field(description="Outcomes learned.")
    imported: int = Field(description="Those of them that were imported.")
    pending: int = Field(description="Decisions without an outcome yet.")
    mean_reward: float | None = Field(description="Of the outcomes that carried a reward; null before the first of them.")
    total_cost: float = Field(description="Of all outcomes.")
    errors: int = Field(description="Outcomes with an error.")
    cooling_until: str | None = Field(
        description="RFC 3339, UTC: left out of decisions until then, after errors; null where it is not."
    )
    share: float = Field(description="Of the last 1,000 decisions.", ge=0, le=1)


class ArmReceipt(ArmAnswer):
    """An arm after a change."""

    offset: int = Field(description="What is learned up to here.")


class EmbedderAnswer(Answer):
    """How vectors come to be."""

    embedder: str = Field(
        description="`vector`: the client embeds. With its model, e.g. `open-clip/shapes`.", examples=["vector"]
    )
    dim: int = Field(description="Length of a vector.", examples=[384])
    version: str = Field(description="Of the weights; empty where there are none.")
    takes: Literal["text", "image", "both"] = Field(
        "both", description="What is posted; left out where it follows from the rest."
    )
    reads: Literal["last_user", "conversation"] = Field("last_user", description="Of messages; left out where it was not given.")
    keep: Literal["start", "end", "both"] = Field("start", description="Of longer texts; left out where it was not given.")


class _RewardSource(Answer):
    """The fields before the parameters of scorers."""

    source: str = Field(description="`client`: posted with the outcome; else a scorer.", examples=["client"])
    override: bool = Field(False, description="With a scorer: a posted reward wins; left out where false.")


def _without_default(schema: dict[str, Any]) -> None:
    """Of a field that is left out, and never null, where it was not given."""
    schema.pop("default", None)


if TYPE_CHECKING:
    _ScorerParameters = _RewardSource
else:
    _ScorerParameters = create_model(
        "_ScorerParameters",
        __base__=_RewardSource,
        **{
            name: (
                parameter.annotation,
                Field(None, description=f"{parameter.doc} Left out where it was not given.", json_schema_extra=_without_default),
            )
            for name, parameter in PARAMETERS.items()
        },
    )


class RewardAnswer(_ScorerParameters):
    """Where rewards come from."""

    options: dict[str, Any] = Field(
        default_factory=dict, description="Of a scorer of another package; left out where none were given."
    )
    default: float | None = Field(description="Learned when no outcome came in time; null = nothing is.")
    timeout_s: float = Field(description="Seconds after which an open decision expires.", examples=[86400.0])


class BudgetAnswer(Answer):
    """A budget and how it is held."""

    signal: str = Field(description="What is held.", examples=["cost"])
    per_decision: float = Field(description="The mean that is allowed.", examples=[0.002])
    running: float | None = Field(description="The mean since the budget was set; null before the first.", examples=[0.0019])
    multiplier: float = Field(description="What is subtracted from the weight of the signal now.", examples=[7.3])
    feasible: bool = Field(description="False: the multiplier is at its cap, and the mean is above the budget all the same.")


class CooldownAnswer(Answer):
    """When an arm whose calls fail is left out of decisions for a while."""

    errors: int = Field(description="Outcomes with an error.", examples=[3])
    within_s: float = Field(description="Seconds within which they come.", examples=[60.0])
    for_s: float = Field(description="Seconds for which the arm is left out.", examples=[30.0])


class CloningAnswer(Answer):
    """How far a clone is."""

    learned: int = Field(description="Outcomes that it has learned.", examples=[1024])
    until: int = Field(description="The offset of the other bandit up to which it learns.", examples=[4711])


class BanditAnswer(Answer):
    """Configuration and what was learned."""

    name: str = Field(description="Its name.", examples=["demo"])
    created_at: str = Field(description="RFC 3339, UTC.", examples=["2026-01-31T12:00:00.123456Z"])
    policy: dict[str, Any] = Field(description="`kind` and every hyperparameter, defaults filled in.")
    arms: list[ArmAnswer] = Field(description="In the order in which they came, retired ones included.")
    prompt: EmbedderAnswer | None = Field(description="Null: the bandit takes no prompts.")
    output: EmbedderAnswer | None = Field(description="Null: the bandit takes no outputs.")
    reward: RewardAnswer = Field(description="Where rewards come from.")
    objective: dict[str, float] | None = Field(
        description="Weight of each signal in what decisions maximize; null where the policy learns no reward.",
        examples=[{"reward": 1.0}],
    )
    signals: list[str] = Field(description="What is learned of outcomes.", examples=[["reward", "cost"]])
    prices_per: Literal["call", "outcome"] = Field(description="What prices are for.")
    budget: BudgetAnswer | None = Field(description="Null: none is held.")
    session_ttl_s: float | None = Field(description="Seconds for which a session keeps its arm; null: sessions do not count.")
    cooldown: CooldownAnswer | None = Field(description="Null: arms whose calls fail are chosen all the same.")
    seed: int = Field(description="Of random frequencies and draws.")
    cloning: CloningAnswer | None = Field(description="Of a clone that still learns and decides nothing; null otherwise.")
    configuration: dict[str, Any] = Field(description="A body that creates this bandit as it is now; PUT it back at any time.")
    offset: int = Field(description="What is learned up to here.")
    decisions: int = Field(description="Decisions ever.")
    open: int = Field(description="Decisions without an outcome yet.")
    references: int = Field(description="Reference samples ever.")
    notices: list[str] = Field(
        description="What you should know of this bandit: what is seen, and the fix. Empty where all is well.", examples=[[]]
    )
    report: dict[str, Any] = Field(
        description="What was learned, in the policy's own terms. Where it is known, also `gain` over the best fixed arm "
        "(`value` per decision, 95 % `interval`, `best_fixed`) and `calibration` of estimates (`mean_error`, `deviation`, "
        "`relative_deviation` to the learned noise, `outcomes`)."
    )


class CheckAnswer(Answer):
    """One thing that was looked at."""

    name: str = Field(description="Which check it is.", examples=["missing_outcomes"])
    status: Literal["ok", "warn", "alarm"] = Field(description="`warn`: look at it; `alarm`: it does not work.", examples=["ok"])
    value: Any = Field(
        description="A number, an object by arm, by signal or by part, a list, or null where nothing is known.", examples=[0.02]
    )
    detail: str = Field(
        description="What was seen, in a sentence.",
        examples=["Of the decisions that closed of late, 2.0% expired without an outcome."],
    )
    fix: str = Field(description="What to do where the status is not `ok`.", examples=["Report every outcome within timeout_s."])


class BanditHealthAnswer(Answer):
    """The health of a bandit."""

    status: Literal["ok", "warn", "alarm"] = Field(description="The worst of the checks.", examples=["ok"])
    checks: list[CheckAnswer] = Field(
        description="arms, estimates, entropy, starved_arms, missing_outcomes, errors, last_outcome; where a reward is learned "
        "also reward_scale, reward_range, drift, calibration, variance, prompt_pays, gain, budget, signals, objective, "
        "cost_ratio. Those that do not apply to the bandit are left out."
    )


class TrafficAnswer(Answer):
    """Which arms were chosen in the last two hours."""

    width_s: int = Field(description="Seconds of a bucket.", examples=[300])
    at: str = Field(description="RFC 3339, UTC: where the first bucket begins.", examples=["2026-01-31T12:00:00Z"])
    arms: dict[str, list[int]] = Field(
        description="Decisions in each of the 24 buckets, of the five arms with most of them.", examples=[{"small": [3, 5]}]
    )
    other: list[int] = Field(description="The same of all other arms.")


class BanditSummary(Answer):
    """A bandit in short. All but the name is null where `fault` says why."""

    name: str = Field(description="Its name.", examples=["demo"])
    policy: dict[str, Any] | None = Field(description="`kind` and hyperparameters.", examples=[{"kind": "greedy"}])
    arms: int | None = Field(description="That can be chosen.", examples=[2])
    decisions: int | None = Field(description="Made so far.", examples=[4711])
    open: int | None = Field(description="Without an outcome yet.", examples=[3])
    reward: float | None = Field(description="Mean of the last 1,000; null before the first.", examples=[0.62])
    reward_week_ago: float | None = Field(
        description="Mean of the day that ended a week ago, to six hours; null where none is known of it.", examples=[0.58]
    )
    cost_per_decision: float | None = Field(
        description="Mean of the last 1,000 that a decision was closed with; null before the first.", examples=[0.0019]
    )
    missing: float | None = Field(
        description="Share of the last decisions (some 1,000) that expired; null before the first was closed.", examples=[0.02]
    )
    last_decision_at: str | None = Field(description="RFC 3339, UTC; null before the first.")
    traffic: TrafficAnswer | None = Field(description="Which arms were chosen of late.")
    status: Literal["ok", "warn", "alarm"] | None = Field(description="That of its health.")
    failing: list[str] | None = Field(description="The checks of its health that are not `ok`.", examples=[["drift"]])
    notices: list[str] | None = Field(description="What its owner should know.")
    as_of: int | None = Field(description="The offset up to which its log is in all that.", examples=[9423])
    fault: str | None = Field(description="Why nothing can be said of it now; null as a rule.")


class BanditsAnswer(Answer):
    """A page of bandits."""

    bandits: list[BanditSummary] = Field(description="In the order of their names.")
    next: str | None = Field(description="The `after` of the next page; null on the last.")


class PolicyAnswer(Answer):
    """A policy that bandits can have."""

    kind: str = Field(description="Its name.", examples=["pak-ucb"])
    summary: str = Field(description="What it is for.")
    needs: list[str] = Field(description="What it learns from: features (a prompt), reward, output, reference, cost.")
    reference_when: str = Field(description="Which settings need a reference although `needs` does not list it.")
    contextual: bool = Field(description="A decision needs a prompt.")
    episodic: bool = Field(description="Several attempts on one prompt.")
    hyperparameters: list[str] = Field(description="Their names.")
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON schema of the `policy` of a bandit.")


class PoliciesAnswer(Answer):
    """Every policy."""

    policies: list[PolicyAnswer] = Field(description="Every policy.")


class EmbedderListed(Answer):
    """An embedder that bandits can name."""

    name: str = Field(description="Its name.", examples=["open-clip"])
    summary: str = Field(description="What it is.")
    takes: list[Literal["text", "image", "vector"]] = Field(description="What it can embed.")
    dim: int | None = Field(description="Length of a vector; null = the client says.", examples=[384])
    reads: str = Field(description="How much of a text it reads; of a longer one what `prompt.keep` says. Empty: no texts.")
    languages: list[str] = Field(description="That its texts were written in (BCP 47); empty where that is not known.")
    unit_norm: bool = Field(description="Every vector has length one.")
    licence: str = Field(description="Of the weights (SPDX); empty where there are none.", examples=["Apache-2.0"])
    available: bool = Field(description="It can be used on this server.")
    reason: str = Field(description="Why it cannot, and what to install or set.")
    version: str = Field(description="Package and start of the sha256 of the weights; empty where there are none.")
    models: dict[str, str] = Field(
        description="Of `open-clip`: the models that are here by name, and what each is for; a bandit may also name a checkpoint."
    )


class ScorerListed(Answer):
    """A scorer that bandits can name as the source of their rewards."""

    name: str = Field(description="Its name.", examples=["clip-score"])
    summary: str = Field(description="What it rewards.")
    reads: list[Literal["text", "image", "vector"]] = Field(description="What an output may be.")
    parameters: list[str] = Field(description="Its fields of `reward`.")
    gives: str = Field(description="Range of the reward.", examples=["0 to 1"])
    licence: str = Field(description="SPDX; empty where another package brings it.")
    available: bool = Field(description="It can be used on this server.")
    reason: str = Field(description="Why it cannot, and what to install.")
    origin: str = Field(description="The package that brings it.", examples=["nextarm"])


class EmbeddersAnswer(Answer):
    """What turns contents into vectors, and outputs into rewards."""

    embedders: list[EmbedderListed] = Field(description="Every embedder.")
    scorers: list[ScorerListed] = Field(description="Every scorer.")


class WarmAnswer(Answer):
    """A loaded embedder."""

    embedder: str = Field(description="With its model.", examples=["open-clip/shapes"])
    dim: int = Field(description="Length of a vector.", examples=[64])
    version: str = Field(description="Package and start of the sha256 of the weights.")


class HealthAnswer(Answer):
    """The process is alive."""

    status: Literal["ok"] = Field(description="Always ok.")


class ReadinessAnswer(Answer):
    """Whether the service can do its work."""

    status: Literal["ready", "not ready"] = Field(description="`not ready` comes with 503.")
    reasons: list[str] = Field(
        description="Why it is not ready. Bandits that are not served because a newer version wrote into their log are here too, "
        "and alone leave it ready. Bandits that the caller may not see are counted."
    )
    damaged: list[str] = Field(
        description="Bandits whose log cannot be folded; the others are served. Named or counted as above."
    )
    notices: list[str] = Field(
        description="What an operator should know of how the store is set up: in full for a key without a tenant, else counted."
    )
    lag: int = Field(description="Events of the bandit that is furthest behind its log, as far as known.")
    loading: list[str] = Field(
        default_factory=list,
        description="Bandits that are being loaded in the background, left out where there is none; a request for one loads it "
        "at once. Named or counted as above.",
    )
    warming: list[str] = Field(
        default_factory=list,
        description="Embedders that are being loaded, left out where there is none; requests that need one wait. Counted for a "
        "key of a tenant.",
    )


# -- writers ---------------------------------------------------------------------------------------------------------------------


def answer(content: Any, *, status: int = 200) -> Response:
    """A JSON response; NaN has become null long before."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def time_text(at: datetime) -> str:
    """RFC 3339, UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def evaluation_summary_json(record: Record) -> dict[str, Any]:
    """An evaluation without its results."""
    return {
        "id": record.id,
        "state": record.state,
        "progress": record.progress,
        "created_at": time_text(record.created_at),
        "finished_at": None if record.finished_at is None else time_text(record.finished_at),
        "until": record.plan.until,
        "failure": record.failure,
    }


def evaluation_json(record: Record) -> dict[str, Any]:
    """An evaluation with its results, as far as there are any."""
    results = record.results or {}
    names = ("decisions", "left_out", "behaviour", "policies", "fixed_arms", "best_fixed_arm")
    return {**evaluation_summary_json(record), "request": record.request, **{name: results.get(name) for name in names}}


DAY_S = 86_400
SHOWN_IN_TRAFFIC = 5
"""Arms whose decisions a list of bandits shows apart."""
FULL_TABLE = 64
"""Arms up to which an answer shows the weights and scores of all: a batch of 1,024 decisions over 1,000 arms would be 60 MB."""
BEST_SHOWN = 16
"""Arms that an answer shows of more than that."""
_INDEX_TERMS = ("estimate", "bonus")
"""Scores whose sum is the index that most policies choose by."""


def decision_json(
    learner: Learner, decided: Decided, *, offset: int, dry_run: bool = False, full: bool = False
) -> dict[str, Any]:
    """A decision as it is answered. full: with the weights and scores of every arm, however many there are."""
    names = [arm.name for arm in learner.versions.committed.arms]
    stop = decided.arm < 0
    allowed = set(decided.allowed)
    shown: Sequence[int] = range(len(decided.weights)) if decided.present is msgspec.UNSET else decided.present
    if not full and len(shown) > FULL_TABLE:
        shown = _best_arms(decided)
    scored = [arm for arm in shown if arm in allowed]
    return {
        "id": None if dry_run else decided.id,
        "bandit": learner.created.bandit,
        "episode": None if dry_run else decided.episode,
        "attempt": decided.attempt,
        "arm": None if stop else names[decided.arm],
        "stop": stop,
        "propensity": decided.propensity,
        "weights": {names[i]: decided.weights[i] for i in shown},
        "scores": dict(zip([names[i] for i in scored], _scores_json(decided, scored), strict=True)),
        **({} if decided.multipliers is msgspec.UNSET else {"multipliers": decided.multipliers}),
        **({} if decided.running is msgspec.UNSET else {"running": decided.running}),
        **({} if decided.session is msgspec.UNSET else {"session": decided.session}),
        **({"sticky": True, "chosen_by": decided.chosen_by} if decided.sticky else {}),
        **({"cooldown_ignored": True} if decided.cooldown_ignored else {}),
        **({} if decided.metadata is msgspec.UNSET else {"metadata": decided.metadata}),
        "offset": offset,
    }


_SIGNAL = "signals."
"""What the names of scores begin with that are estimates of one signal."""


def _scores_json(decided: Decided, arms: Sequence[int]) -> list[dict[str, Any]]:
    """The scores of each of these arms, those of signals in an object of their own."""
    tables = [(name, values) for name, values in decided.scores.items() if not name.startswith(_SIGNAL)]
    signals = [(name.removeprefix(_SIGNAL), values) for name, values in decided.scores.items() if name.startswith(_SIGNAL)]
    found: list[dict[str, Any]] = [{name: values[arm] for name, values in tables} for arm in arms]
    if signals:
        for arm, scores in zip(arms, found, strict=True):
            scores["signals"] = {name: values[arm] for name, values in signals}
    return found


def _best_arms(decided: Decided) -> list[int]:
    """The arm that was chosen and those of the highest weight; among equal weights, those whose index is nearest to its own:
    whether a policy looks for the highest or the lowest one, these were nearly chosen.
    """
    terms = [decided.scores[name] for name in _INDEX_TERMS if name in decided.scores] if decided.arm >= 0 else []

    def distance(arm: int) -> float:
        return abs(sum((values[arm] or 0.0) - (values[decided.arm] or 0.0) for values in terms))

    best = heapq.nsmallest(BEST_SHOWN, decided.allowed, key=lambda arm: (-decided.weights[arm], distance(arm)))
    return sorted({*best, decided.arm} - {-1})


def closed_json(learner: Learner, found: DecisionHistory) -> dict[str, Any]:
    """What became of a decision. A default reward comes with the price as its cost, as the arm's total has it."""
    values: dict[str, float] = {}
    cost = None
    event = None if found.closing is None else found.closing.event
    if event is None:
        for partial in found.partials:
            values = partial.event.values | values
    else:
        known = learner.outcomes.known_outcome(found)
        values, cost = known.values, known.cost
    posted: dict[str, Any] = {}
    if isinstance(event, Observed):
        posted |= {} if event.metadata is msgspec.UNSET else {"outcome_metadata": event.metadata}
        posted |= {} if event.error is msgspec.UNSET else {"error": event.error}
        if event.is_failure:  # nothing of it was learned, and amendments begin with nothing
            values = ({} if event.signals is msgspec.UNSET else event.signals) | values
    return {
        "state": found.state,
        "reward": values.get(REWARD),
        "cost": values.get(COST, cost),
        "signals": {name: value for name, value in values.items() if name not in (REWARD, COST)},
        "amendments": [_amendment_json(one.event, one.offset) for one in found.amendments],
        "closed_at": None if event is None else time_text(event.at),
        **posted,
    }


def history_json(learner: Learner, found: DecisionHistory, *, full: bool) -> dict[str, Any]:
    """A decision with what became of it. full: as of `decision_json`."""
    decided = found.decided
    return {
        **decision_json(learner, decided.event, offset=decided.offset, full=full),
        **closed_json(learner, found),
        "decided_at": time_text(decided.event.at),
    }


def series_json(selection: Selection, *, names: Sequence[str], offset: int) -> dict[str, Any]:
    """The rows of a selection. names, offset: the arms, and what was folded, when it was made."""
    apart, rows = merge(selection)
    begin = selection.start * selection.width_s
    return {
        "width_s": selection.width_s,
        "since": _seconds_text(begin),
        "until": _seconds_text(begin + selection.rows * selection.width_s),
        "offset": offset,
        "arms": [names[index] for index in apart],
        "buckets": [_row_json(row, names, apart) for row in rows],
    }


def _seconds_text(seconds: int) -> str:
    return time_text(datetime.fromtimestamp(seconds, UTC))


def _row_json(row: Row, names: Sequence[str], apart: Sequence[int]) -> dict[str, Any]:
    latest = row.latest or Latest([], {})
    places = {index: k for k, index in enumerate(latest.indices)}
    arms = {}
    for index in apart:
        counts, place = row.arms.get(index), places.get(index)
        weight = None if place is None else latest.weights[place]
        scores = {} if place is None else {name: values[place] for name, values in latest.scores.items()}
        if counts is not None or weight or any(value is not None for value in scores.values()):
            arms[names[index]] = _counts_json(counts or ArmCounts(), weight, scores)
    other = row.arms.get(OTHER)
    return {"at": _seconds_text(row.at), "arms": arms, "other": None if other is None else _counts_json(other, None, {})}


def _counts_json(counts: ArmCounts, weight: float | None, scores: dict[str, float | None]) -> dict[str, Any]:
    return {
        "decisions": counts.decisions,
        "outcomes": counts.outcomes,
        "expired": counts.expired,
        "errors": counts.errors,
        "signals": {
            name: {"sum": sums.total, "square_sum": sums.squares, "count": sums.count} for name, sums in counts.signals.items()
        },
        "weight": weight,
        "scores": scores,
    }


def _amendment_json(event: Amended, offset: int) -> dict[str, Any]:
    return {
        "id": None if event.amendment is msgspec.UNSET else event.amendment,
        "at": time_text(event.at),
        "offset": offset,
        "before": event.before,
        "after": {name: event.values[name] for name in event.before},
    }


def amendment_json(recorded: Recorded) -> dict[str, Any]:
    """The receipt of an amendment. Where it changed nothing, the event may be the one that closed the decision."""
    event: Amended | Observed | Expired = recorded.event
    signals = msgspec.UNSET if isinstance(event, Expired) else event.signals
    return {
        "decision": event.id,
        "reward": event.reward,
        "cost": None if isinstance(event, Expired) else event.cost,
        "signals": {} if signals is msgspec.UNSET else signals,
        "offset": recorded.offset,
        "duplicate": recorded.is_duplicate,
    }


def receipt_json(recorded: Recorded, *, following: dict[str, Any] | None) -> dict[str, Any]:
    """The receipt of an outcome."""
    event: Observed | Partial = recorded.event
    return {
        "decision": event.id,
        "reward": None if isinstance(event, Partial) else event.reward,
        "offset": recorded.offset,
        "duplicate": recorded.is_duplicate,
        "next": following,
    }


def arm_json(learner: Learner, index: int, *, chosen: Counter[int] | None = None) -> dict[str, Any]:
    """What is known of an arm. chosen: how often each was, of late (counted here where it is not given)."""
    arm = learner.versions.committed.arms[index]
    chosen = Counter(learner.ledger.recent) if chosen is None else chosen
    return {
        "name": arm.name,
        "price": arm.price,
        "metadata": arm.metadata,
        "active": arm.active,
        "pulls": arm.pulls,
        "outcomes": arm.outcomes,
        "imported": arm.imported,
        "pending": arm.pending,
        "mean_reward": arm.reward_sum / arm.rewards if arm.rewards else None,
        "total_cost": arm.cost_sum,
        "errors": arm.errors,
        "cooling_until": None if (until := learner.cooling_until(index)) is None else time_text(until),
        "share": chosen[index] / chosen.total() if chosen else 0.0,
    }


def _embedder_json(created: Created, part: Literal["prompt", "output"]) -> dict[str, Any] | None:
    """How prompts or outputs are embedded; the younger fields only where they were given."""
    embedder, dim, version = (
        (created.prompt_embedder, created.dim, created.prompt_version)
        if part == "prompt"
        else (created.output_embedder, created.output_dim, created.output_version)
    )
    given = created.request.get(part) or {}
    younger = {name: given[name] for name in YOUNGER[part] if given.get(name) is not None}
    return {"embedder": embedder, "dim": dim, "version": version, **younger} if embedder else None


def _budget_json(ledger: Ledger) -> dict[str, Any] | None:
    """The budget and how it is held."""
    spending = ledger.spending
    if spending is None:
        return None
    return {
        "signal": spending.budget.signal,
        "per_decision": spending.budget.per_decision,
        "running": spending.running,
        "multiplier": ledger.multipliers()[spending.budget.signal],
        "feasible": spending.is_feasible,
    }


async def shadow_json(learner: Learner, name: str) -> dict[str, Any]:
    """A shadow as it is now; KeyError where there is none."""
    record, projection, end = learner.ledger.shadows[name], learner.projection, learner.versions.committed.offset
    behind, track = projection.catching_up.get(record.number), projection.tracks.get(record.number)
    learned = learner.ledger.outcomes if behind is None else behind.ledger.outcomes
    left = behind.learned.left if behind is not None else 0 if track is None else track.left
    failure = "" if track is None else track.failure or (str(track.fault) if track.fault else "")
    names, count = [arm.name for arm in learner.ledger.arms], record.decisions
    return {
        "name": name,
        "offset": record.offset,
        "policy": {"kind": record.policy, **record.hyperparameters},
        "learns_from": record.learns_from,
        "created_at": time_text(record.at),
        "state": "failed" if failure else "learning" if behind is None else "behind",
        "failure": failure or None,
        "learned_to": end if behind is None else behind.ledger.offset,
        "outcomes": learned - record.outcomes - left,
        "outcomes_left_out": left,
        "decisions": count,
        "left_out": record.left_out,
        "agreement": record.overlap / count if count else None,
        "would_choose": {names[k]: total / count for k, total in enumerate(record.weights)} if count else None,
        "report": None if track is None or failure else await learner.report_of(track),
    }


def _cloning_json(ledger: Ledger) -> dict[str, int] | None:
    """How far a clone is; None where it decides."""
    cloning = ledger.cloning
    return None if cloning is None else {"learned": cloning.learned, "until": cloning.source.until}


async def health_json(learner: Learner, now: datetime) -> dict[str, Any]:
    """Every check of a bandit, and the worst status."""
    checks = await learner.health(now)
    return {"status": worst(checks), "checks": checks}


async def summary_json(learner: Learner, now: datetime, of_embedders: Sequence[str]) -> dict[str, Any]:
    """A bandit in short, from what is folded: `as_of` is that offset. of_embedders: notices about its embedders."""
    judged = await learner.judge(now)
    ledger, seconds, missing = learner.ledger, now.timestamp(), learner.ledger.tallies.missing
    last = ledger.tallies.last_decision
    return {
        "name": learner.created.bandit,
        "policy": {"kind": learner.policy.kind, **ledger.live.hyperparameters},
        "arms": sum(arm.active for arm in ledger.arms),
        "decisions": ledger.decided,
        "open": len(ledger.open),
        "reward": _mean(ledger.series.rewards.values()),
        "reward_week_ago": ledger.series.mean(REWARD, seconds - 8 * DAY_S, seconds - 7 * DAY_S),
        "cost_per_decision": _mean(ledger.series.costs.values()),
        "missing": missing.mean if missing.count else None,
        "last_decision_at": None if last is None else time_text(last),
        "traffic": _traffic_json(ledger, seconds),
        "status": judged.status,
        "failing": judged.failing,
        "notices": [*judged.notices, *of_embedders],
        "as_of": ledger.offset,
        "fault": None,
    }


async def stored_summary(learner: Learner) -> bytes:
    """The summary that a list shows while the bandit is out of memory."""
    return msgspec.json.encode(await summary_json(learner, learner.clock(), []))


def faulty_json(name: str, fault: str) -> dict[str, Any]:
    """A bandit of which nothing can be said now."""
    return {**dict.fromkeys(BanditSummary.model_fields), "name": name, "fault": fault}


def _mean(values: Collection[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _traffic_json(ledger: Ledger, now: float) -> dict[str, Any]:
    buckets = ledger.series.traffic(now)
    totals = sum(map(Counter, buckets), Counter[int]())
    totals.pop(OTHER, None)
    shown = sorted(heapq.nsmallest(SHOWN_IN_TRAFFIC, totals, key=lambda index: (-totals[index], index)))
    return {
        "width_s": TRAFFIC_S,
        "at": _seconds_text((int(now // TRAFFIC_S) + 1 - len(buckets)) * TRAFFIC_S),
        "arms": {ledger.arms[index].name: [bucket.get(index, 0) for bucket in buckets] for index in shown},
        "other": [sum(count for index, count in bucket.items() if index not in shown) for bucket in buckets],
    }


async def bandit_json(learner: Learner, of_embedders: Sequence[str]) -> dict[str, Any]:
    """A bandit with its configuration, arms and report. of_embedders: notices about its embedders."""
    created = learner.created
    report = await learner.report()
    known = learner.versions.committed.arms
    per_arm = [*report.pop("arms"), *({} for _ in known)]  # an arm that came just now has no report yet
    chosen = Counter(learner.ledger.recent)
    asked = created.request.get("reward", {})
    scorer: dict[str, Any] = {"override": True} if asked.get("override") else {}
    scorer |= {name: value for name in SCORER_FIELDS if (value := asked.get(name)) is not None}
    arms = [{**per_arm[i], **arm_json(learner, i, chosen=chosen)} for i in range(len(known))]  # fields of the ledger win
    return {
        "name": created.bandit,
        "created_at": time_text(created.at),
        "policy": {"kind": learner.policy.kind, **learner.ledger.live.hyperparameters},
        "arms": arms,
        "prompt": _embedder_json(created, "prompt"),
        "output": _embedder_json(created, "output"),
        "reward": {
            **scorer,
            "source": created.reward_source,
            "default": learner.ledger.live.default_reward,
            "timeout_s": learner.ledger.live.timeout_s,
        },
        "objective": learner.ledger.live.objective if "reward" in learner.policy.needs else None,
        "signals": [*created.learned] if "reward" in learner.policy.needs else [],
        "prices_per": learner.ledger.prices_per,
        "budget": _budget_json(learner.ledger),
        "cooldown": learner.ledger.live.cooldown,
        "session_ttl_s": learner.ledger.live.session_ttl_s,
        "seed": created.seed,
        "cloning": _cloning_json(learner.ledger),
        "configuration": configuration(learner),
        "offset": learner.versions.committed.offset,
        "decisions": learner.ledger.decided,
        "open": len(learner.ledger.open),
        "references": learner.ledger.referenced,
        "notices": [*await learner.notices(), *of_embedders],
        "report": report,
    }
