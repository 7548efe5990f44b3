"""What the service answers, typed. Fields of a newer service are kept as they are; those of an older one have defaults."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Base of all answers: unknown fields are kept, so that a newer service can be read."""

    model_config = ConfigDict(extra="allow", defer_build=True, populate_by_name=True, protected_namespaces=())


# -- problems ------------------------------------------------------------------------------------------------------------------


class FieldProblem(Model):
    """A wrong field. path: where in the request, such as `arms.0.price`.  message: what is wrong, and how to mend it."""

    path: str
    message: str


class Problem(Model):
    """A problem document (RFC 9457): the body of every error, and an item of a batch that was refused."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    code: str
    detail: str = ""
    errors: list[FieldProblem] = []
    request_id: str = ""


# -- decisions and outcomes ----------------------------------------------------------------------------------------------------


class Decision(Model):
    """The model to query.

    id: post the outcome under it; null for a dry run.  arm: null where `stop` says that no arm is worth a (further) call.
    propensity: the probability with which the arm was drawn; null where nothing was drawn.  offset: its place in the log.
    is_fallback: made by the client while the service was away; the offset is 0, propensity null, weights and scores are empty.
    """

    id: str | None
    bandit: str
    episode: str | None = None
    attempt: int = 1
    arm: str | None
    stop: bool = False
    propensity: float | None = None
    weights: dict[str, float] = {}
    scores: dict[str, dict[str, float | dict[str, float | None] | None]] = {}
    multipliers: dict[str, float] = {}
    running: dict[str, float | None] = {}
    session: str = ""
    sticky: bool = False
    chosen_by: str = ""
    cooldown_ignored: bool = False
    metadata: dict[str, Any] = {}
    offset: int = 0
    is_fallback: bool = False


class Amendment(Model):
    """A correction of an outcome. before, after: what it changed; null = missing."""

    id: str | None = None
    at: datetime
    offset: int
    before: dict[str, float | None]
    after: dict[str, float]


class DecisionState(Decision):
    """A decision with what became of it. state: `open`, `observed`, `expired` or `cancelled`.
    metadata, outcome_metadata: as they were posted with the decision, and with its outcome.
    """

    state: str
    reward: float | None = None
    cost: float | None = None
    signals: dict[str, float] = {}
    amendments: list[Amendment] = []
    decided_at: datetime
    closed_at: datetime | None = None
    error: str = ""
    outcome_metadata: dict[str, Any] = {}


class DecisionPage(Model):
    """Decisions, the newest first. next_before: the `before` of the next page; null = there are no older ones.
    trimmed_before: the first offset that the store still has, where the page ends at it.
    """

    decisions: list[DecisionState]
    next_before: int | None = None
    trimmed_before: int | None = None


class Decisions(Model):
    """A batch of decisions, in the order of the request; an item that was refused is its problem."""

    decisions: list[Decision | Problem]


class Receipt(Model):
    """The receipt of an outcome.

    duplicate: it was learned before, and not again.  next: the following decision, where it was asked for and there is one.
    is_deferred: the service was away; the client reports it when it is back, and the offset is 0.
    """

    decision: str
    reward: float | None = None
    offset: int = 0
    duplicate: bool = False
    next: Decision | None = None
    is_deferred: bool = False


class AmendmentReceipt(Model):
    """The receipt of an amendment, with the outcome after it."""

    decision: str
    reward: float | None = None
    cost: float | None = None
    signals: dict[str, float] = {}
    offset: int
    duplicate: bool


class Receipts(Model):
    """A batch of receipts, in the order of the request; an item that was refused is its problem."""

    outcomes: list[Receipt | Problem]


class ImportReceipt(Model):
    """The receipt of imported outcomes. duplicates: rows that were learned before."""

    learned: int
    duplicates: int = 0
    offset: int


class ReferenceReceipt(Model):
    """The receipt of reference material. count: reference samples so far."""

    count: int
    offset: int


# -- bandits -------------------------------------------------------------------------------------------------------------------


class Arm(Model):
    """What is known of an arm; the policy's own terms are further fields. share: of the last 1,000 decisions."""

    name: str
    price: float
    metadata: dict[str, Any] = {}
    active: bool
    pulls: int
    outcomes: int
    imported: int = 0
    pending: int
    mean_reward: float | None = None
    total_cost: float
    errors: int = 0
    cooling_until: datetime | None = None
    share: float


class ArmReceipt(Arm):
    """An arm after a change."""

    offset: int


class EmbedderChoice(Model):
    """How a bandit's vectors come to be. embedder: `vector` where the client embeds."""

    embedder: str
    dim: int
    version: str = ""
    takes: str = "both"
    reads: str = "last_user"
    keep: str = "start"


class RewardSource(Model):
    """Where rewards come from: `client`, or a scorer with its parameters."""

    source: str
    override: bool = False
    expected: str | None = None
    pattern: str | None = None
    fences: str | None = None
    target: int | None = None
    options: dict[str, Any] = {}
    default: float | None = None
    timeout_s: float


class Budget(Model):
    """A budget and how it is held. running: the mean so far.  multiplier: subtracted from the signal's weight now."""

    signal: str
    per_decision: float
    running: float | None = None
    multiplier: float
    feasible: bool


class Cooldown(Model):
    """When an arm whose calls fail is left out of decisions for a while."""

    errors: int
    within_s: float
    for_s: float


class CloneProgress(Model):
    """How far a clone is: offsets of the log that it learns."""

    learned: int
    until: int


class Bandit(Model):
    """Configuration, and what was learned. configuration: a body that `create_bandit` takes.  cloning: null unless it goes on."""

    name: str
    created_at: datetime
    policy: dict[str, Any]
    arms: list[Arm]
    prompt: EmbedderChoice | None = None
    output: EmbedderChoice | None = None
    reward: RewardSource
    objective: dict[str, float] | None = None
    signals: list[str] = []
    prices_per: str = "call"
    budget: Budget | None = None
    cooldown: Cooldown | None = None
    session_ttl_s: float | None = None
    seed: int
    cloning: CloneProgress | None = None
    configuration: dict[str, Any] = {}
    offset: int
    decisions: int
    open: int
    references: int = 0
    notices: list[str] = []
    report: dict[str, Any] = {}


class Traffic(Model):
    """Which arms were chosen of late: decisions in buckets of `width_s` seconds from `at` on, by arm, and those of all others."""

    width_s: int
    at: datetime
    arms: dict[str, list[int]]
    other: list[int] = []


class BanditSummary(Model):
    """An item of the list of bandits: a bandit in short, up to the offset `as_of` of its log.

    arms: how many can be chosen.  reward, cost_per_decision: means of the last 1,000.  missing: share that expired.
    status: of its health; failing: the checks that are not `ok`.  fault: why nothing but the name is known now.
    """

    name: str
    policy: dict[str, Any] | None = None
    arms: int | None = None
    decisions: int | None = None
    open: int | None = None
    reward: float | None = None
    reward_week_ago: float | None = None
    cost_per_decision: float | None = None
    missing: float | None = None
    last_decision_at: datetime | None = None
    traffic: Traffic | None = None
    status: str | None = None
    failing: list[str] | None = None
    notices: list[str] | None = None
    as_of: int | None = None
    fault: str | None = None


class BanditPage(Model):
    """A page of the list of bandits. next: the `after` of the next page; null on the last."""

    bandits: list[BanditSummary]
    next: str | None = None


class Check(Model):
    """One thing that was looked at. status: `ok`, `warn` or `alarm`.  fix: what to do where it is not `ok`."""

    name: str
    status: str
    value: Any = None
    detail: str = ""
    fix: str = ""


class BanditHealth(Model):
    """The health of a bandit. status: the worst of the checks."""

    status: str
    checks: list[Check]


class SignalSums(Model):
    """The sums of one signal: its mean is `sum / count`."""

    sum: float
    square_sum: float
    count: int


class ArmSeries(Model):
    """What happened to one arm in one bucket. weight, scores: of the last decision in it."""

    decisions: int
    outcomes: int
    expired: int
    errors: int = 0
    signals: dict[str, SignalSums] = {}
    weight: float | None = None
    scores: dict[str, float | None] = {}


class SeriesBucket(Model):
    """What happened from `at` on. other: the arms that are not apart."""

    at: datetime
    arms: dict[str, ArmSeries]
    other: ArmSeries | None = None


class Series(Model):
    """A bandit over time. arms: names of those that are apart.  buckets: of `width_s` seconds, one after the other."""

    width_s: int
    since: datetime
    until: datetime
    offset: int
    arms: list[str]
    buckets: list[SeriesBucket]


class Shadow(Model):
    """A policy that learns beside the one that decides.

    offset: of the event that made it what it is; a promotion names it.  state: `learning`, `behind` or `failed`.
    agreement: mean mass that its weights share with those that were drawn from.  would_choose: its mean weight of each arm.
    """

    name: str
    offset: int
    policy: dict[str, Any]
    learns_from: str = "now"
    created_at: datetime
    state: str
    failure: str | None = None
    learned_to: int
    outcomes: int
    outcomes_left_out: int = 0
    decisions: int
    left_out: int = 0
    agreement: float | None = None
    would_choose: dict[str, float] | None = None
    report: dict[str, Any] | None = None


class Shadows(Model):
    """The shadows of a bandit, by name."""

    shadows: list[Shadow]


class Promotion(Model):
    """The receipt of a promotion. duplicate: it was done before, and not again."""

    id: str
    shadow: str
    offset: int
    duplicate: bool


class Evaluated(Model):
    """What the log says of one policy.

    verdict: `answer`, `wide`, `bounded`, `cannot_answer`; reason: why.  anytime_interval: holds however many decisions there are.
    """

    policy: dict[str, Any]
    label: str
    value: float | None = None
    interval: list[float | None] = []
    anytime_interval: list[float | None] | None = None
    support: float
    effective_sample: float
    mean_weight: float
    max_weight: float
    p99_weight: float = 0.0
    verdict: str
    reason: str = ""
    estimates: dict[str, dict[str, Any]] = {}


class EvaluationSummary(Model):
    """An evaluation without its results. state: `queued`, `running`, `done` or `failed`.  progress: from 0 to 1."""

    id: str
    state: str
    progress: float
    created_at: datetime
    finished_at: datetime | None = None
    until: int
    failure: str | None = None


class Evaluation(EvaluationSummary):
    """An evaluation. behaviour: the policy that decided, on the same decisions; results are null until it is done."""

    request: dict[str, Any]
    decisions: int | None = None
    left_out: dict[str, int] | None = None
    behaviour: Evaluated | None = None
    policies: list[Evaluated] | None = None
    fixed_arms: list[Evaluated] | None = None
    best_fixed_arm: Evaluated | None = None


class Evaluations(Model):
    """The evaluations of a bandit."""

    evaluations: list[EvaluationSummary]


class Digest(Model):
    """sha256 of the folded state at an offset. layout: of its sums; only digests of one layout can be equal."""

    offset: int
    sha256: str
    layout: int = 1


# -- what the server has -------------------------------------------------------------------------------------------------------


class Policy(Model):
    """A policy that bandits can have. json_schema: of its hyperparameters."""

    kind: str
    summary: str
    needs: list[str]
    reference_when: str = ""
    contextual: bool
    episodic: bool
    hyperparameters: list[str]
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")


class Policies(Model):
    """Every policy of the server."""

    policies: list[Policy]


class Embedder(Model):
    """An embedder that bandits can name. reason: why it is not available, and what to install or set."""

    name: str
    summary: str
    takes: list[str]
    dim: int | None = None
    reads: str = ""
    languages: list[str] = []
    unit_norm: bool
    licence: str = ""
    available: bool
    reason: str = ""
    version: str = ""
    models: dict[str, str] = {}


class Scorer(Model):
    """A scorer that bandits can name as the source of their rewards. parameters: its fields of `reward`."""

    name: str
    summary: str
    reads: list[str]
    parameters: list[str]
    gives: str = ""
    licence: str = ""
    available: bool
    reason: str = ""
    origin: str = ""


class Embedders(Model):
    """What turns contents into vectors, and outputs into rewards."""

    embedders: list[Embedder]
    scorers: list[Scorer] = []


class LoadedEmbedder(Model):
    """An embedder after loading it."""

    embedder: str
    dim: int
    version: str = ""


class Liveness(Model):
    """The process is alive."""

    status: str


class Readiness(Model):
    """Whether the service can do its work. status: `ready`, or `not ready` with the reasons."""

    status: str
    reasons: list[str] = []
    damaged: list[str] = []
    notices: list[str] = []
    lag: int = 0
    loading: list[str] = []
    warming: list[str] = []
