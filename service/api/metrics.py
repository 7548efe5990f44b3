"""Prometheus metrics: requests counted by this process, and values of the ledgers read at the moment of the scrape.

    Meter.count(...)         one request: route, method, status, seconds; plain numbers, made into families at the scrape
    exposition(tenant)       the text: process, requests, embedders, and every bandit that this tenant may see

What is read off a ledger (decisions, outcomes, rewards, costs) is a function of the log, so with several replicas every one of
them reports the same sum: take `max by (bandit, arm)`, not the sum. Requests, repetitions and refusals are each replica's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.embedders.queue import EmbeddingQueue
from service.engine.learner import Learner
from service.engine.repository import BanditRepository

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BOUNDS = (*map(str, BUCKETS), "+Inf")


class Meter(Collector):
    """Counts the requests of one application, in the thread of its event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests: Counter[tuple[str, str, int]] = Counter()  # by route, method and status
        self._problems: Counter[str] = Counter()  # by code
        self._buckets: dict[tuple[str, str], list[int]] = {}  # by route and method: requests per bucket, the last one unbounded
        self._seconds: dict[tuple[str, str], float] = {}  # their sums
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        build = Gauge("nextarm_build_info", "The version that runs, as a label; always 1.", ["version"], registry=self.registry)
        build.labels(version("nextarm")).set(1)
        self.registry.register(self)

    def count(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """One request. route: the template, so that names of bandits do not become labels; "" where there is none."""
        self._requests[route, method, status] += 1
        key = (route, method)
        if key not in self._buckets:
            self._buckets[key], self._seconds[key] = [0] * len(BOUNDS), 0.0
        self._buckets[key][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[key] += seconds

    def count_refused(self, method: str) -> None:
        """One request that was refused for want of room, without a look at its route; it took no time that would say anything."""
        self._requests["", method, 503] += 1
        self.count_problem("overloaded")

    def count_problem(self, code: str) -> None:
        """One request, or one item of a batch, that was refused or failed; `storage_unavailable` are the errors of the store."""
        self._problems[code] += 1

    def collect(self) -> Iterator[Metric]:
        """The families of a scrape."""
        requests = CounterMetricFamily("nextarm_requests", "Requests answered.", labels=["route", "method", "status"])
        for (route, method, status), count in self._requests.items():
            requests.add_metric([route, method, str(status)], count)
        about = "Requests and items of batches answered with a problem, by its code."
        problems = CounterMetricFamily("nextarm_problems", about, labels=["code"])
        for code, count in self._problems.items():
            problems.add_metric([code], count)
        seconds = HistogramMetricFamily("nextarm_request_seconds", "Seconds per request.", labels=["route", "method"])
        for (route, method), counts in self._buckets.items():
            buckets = list(zip(BOUNDS, accumulate(counts), strict=True))
            seconds.add_metric([route, method], buckets, self._seconds[route, method])
        yield from (requests, problems, seconds)


def exposition(meter: Meter, repository: BanditRepository, embeddings: EmbeddingQueue, *, tenant: str | None) -> bytes:
    """The metrics in the text format of Prometheus. tenant: whose bandits; None = all, with the process's own metrics."""
    known = CollectorRegistry(auto_describe=False)
    known.register(_Bandits(repository, tenant))
    if tenant is None:
        known.register(_Embedders(embeddings))
    return (generate_latest(meter.registry) if tenant is None else b"") + generate_latest(known)


class _Bandits(Collector):
    """Collects values of the ledgers of the loaded bandits."""

    def __init__(self, repository: BanditRepository, tenant: str | None) -> None:
        self._repository = repository
        self._tenant = tenant

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        learners = list(self._repository.loaded(self._tenant))
        yield from _per_arm(learners)
        yield from _per_bandit(learners, self._repository)
        yield from _per_shadow(learners)
        if self._tenant is None:
            state = self._repository.state()
            loaded, size = len(learners), self._repository.loaded_bytes()
            yield GaugeMetricFamily("nextarm_bandits_loaded", "Bandits in memory; only they have metrics.", value=loaded)
            yield GaugeMetricFamily("nextarm_bandits_bytes", "Bytes that they take, as estimated.", value=size)
            yield GaugeMetricFamily("nextarm_bandits_loading", "Bandits that are being loaded.", value=len(state["loading"]))
            yield GaugeMetricFamily(
                "nextarm_bandits_damaged",
                "Bandits that answer nothing: their log is damaged, or a newer version wrote into it.",
                value=len(state["damaged"]) + len(state["newer"]),
            )
            notices = self._repository.storage.notices()
            yield GaugeMetricFamily("nextarm_store_notices", "Faults in the store's setup; see readyz.", value=len(notices))


def _per_arm(learners: Iterable[tuple[str, Learner]]) -> Iterator[Metric]:
    labels = ["bandit", "arm"]
    decisions = CounterMetricFamily(
        "nextarm_decisions", "Decisions for the arm; overridden ones for the arm called.", labels=labels
    )
    outcomes = CounterMetricFamily("nextarm_outcomes", "Outcomes learned.", labels=labels)
    rewards = SummaryMetricFamily(
        "nextarm_reward", "Rewards learned: their sum, and the outcomes that carried one.", labels=labels
    )
    costs = CounterMetricFamily("nextarm_cost", "Sum of the costs, in the unit of the prices.", labels=labels)
    pending = GaugeMetricFamily("nextarm_pending", "Decisions whose outcome has not come.", labels=labels)
    alarms = CounterMetricFamily("nextarm_drift_alarms", "Times that rewards were found to have changed.", labels=labels)
    errors = CounterMetricFamily("nextarm_errors", "Outcomes with an error.", labels=labels)
    cooling = GaugeMetricFamily("nextarm_cooling", "1: left out of decisions after errors.", labels=labels)
    for bandit, learner in learners:
        for index, arm in enumerate(learner.versions.committed.arms):
            if arm.is_gone:
                continue
            for family, value in (
                (decisions, arm.pulls),
                (outcomes, arm.outcomes),
                (costs, arm.cost_sum),
                (pending, arm.pending),
                (alarms, arm.alarms),
                (errors, arm.errors),
                (cooling, learner.cooling_until(index) is not None),
            ):
                family.add_metric([bandit, arm.name], value)
            rewards.add_metric([bandit, arm.name], count_value=arm.rewards, sum_value=arm.reward_sum)
    yield from (decisions, outcomes, rewards, costs, pending, alarms, errors, cooling)


def _per_bandit(learners: Iterable[tuple[str, Learner]], repository: BanditRepository) -> Iterator[Metric]:
    offset = GaugeMetricFamily("nextarm_offset", "Offset up to which the log is folded.", labels=["bandit"])
    lag = GaugeMetricFamily("nextarm_fold_lag", "Events in the log that are not folded yet, as far as known.", labels=["bandit"])
    unready = GaugeMetricFamily("nextarm_unready", "Events folded but not yet used for scoring.", labels=["bandit"])
    duplicates = CounterMetricFamily("nextarm_duplicates", "Repeated requests, learned once.", labels=["bandit"])
    multiplier = GaugeMetricFamily(
        "nextarm_budget_multiplier", "What a budget subtracts from the weight of its signal.", labels=["bandit"]
    )
    running = GaugeMetricFamily("nextarm_budget_running", "Running mean of the signal that a budget holds.", labels=["bandit"])
    allowed = GaugeMetricFamily("nextarm_budget_per_decision", "What a budget allows in the mean.", labels=["bandit"])
    trust = GaugeMetricFamily("nextarm_prompt_trust", "Probability that the prompt decides which arm is best.", labels=["bandit"])
    for bandit, learner in learners:
        offset.add_metric([bandit], learner.versions.committed.offset)
        lag.add_metric([bandit], repository.lag(learner))
        unready.add_metric([bandit], learner.versions.preparation_lag)
        duplicates.add_metric([bandit], learner.committer.duplicates)
        if (account := learner.ledger.spending) is not None:
            multiplier.add_metric([bandit], learner.ledger.multipliers()[account.budget.signal])
            allowed.add_metric([bandit], account.budget.per_decision)
            if account.running is not None:
                running.add_metric([bandit], account.running)
        if (probability := learner.policy.trust(learner.versions.scoring.state)) is not None:
            trust.add_metric([bandit], probability)
    yield from (offset, lag, unready, duplicates, multiplier, running, allowed, trust)


def _per_shadow(learners: Iterable[tuple[str, Learner]]) -> Iterator[Metric]:
    labels = ["bandit", "shadow"]
    decisions = CounterMetricFamily("nextarm_shadow_decisions", "Decisions with the weights of the shadow.", labels=labels)
    left_out = CounterMetricFamily(
        "nextarm_shadow_left_out", "Decisions without: it was too slow, or could not decide on the prompt.", labels=labels
    )
    agreement = GaugeMetricFamily(
        "nextarm_shadow_agreement", "Mean mass that its weights share with those drawn from.", labels=labels
    )
    for bandit, learner in learners:
        for name, shadow in sorted(learner.ledger.shadows.items()):
            decisions.add_metric([bandit, name], shadow.decisions)
            left_out.add_metric([bandit, name], shadow.left_out)
            if shadow.decisions:
                agreement.add_metric([bandit, name], shadow.overlap / shadow.decisions)
    yield from (decisions, left_out, agreement)


class _Embedders(Collector):
    """Collects the counts of the embedding queue."""

    def __init__(self, embeddings: EmbeddingQueue) -> None:
        self._embeddings = embeddings

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        labels = ["embedder"]
        embedded = CounterMetricFamily("nextarm_embedded", "Contents embedded in forward passes.", labels=labels)
        passes = CounterMetricFamily("nextarm_embedding_passes", "Forward passes.", labels=labels)
        cached = CounterMetricFamily("nextarm_embedding_cached", "Contents answered from the cache.", labels=labels)
        refused = CounterMetricFamily("nextarm_embedding_refused", "Requests rejected because the queue was full.", labels=labels)
        waiting = GaugeMetricFamily("nextarm_embedding_waiting", "Contents that wait now.", labels=labels)
        cut = CounterMetricFamily("nextarm_texts_cut", "Texts embedded of which only a part was read.", labels=labels)
        unknown = CounterMetricFamily("nextarm_texts_unknown", "Texts embedded with words that the model lacks.", labels=labels)
        for name, counts in self._embeddings.counts().items():
            for family, value in (
                (embedded, counts.embedded),
                (passes, counts.passes),
                (cached, counts.cached),
                (refused, counts.refused),
                (waiting, counts.waiting),
                (cut, counts.cut),
                (unknown, counts.unknown),
            ):
                family.add_metric([name], value)
        yield from (embedded, passes, cached, refused, waiting, cut, unknown)
