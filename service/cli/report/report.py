"""The report of a bandit: its numbers, what they say in sentences, as JSON and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from bandits.evaluation.intervals import Interval
from bandits.evaluation.retrospective import Exploration, Gain, Known, PromptValue, Retrospective, ratio_of_sums
from bandits.registry import POLICIES
from service.cli.log_reader import LogError, LogReader, amendments
from service.cli.logs import Source
from service.cli.report.history import ArmCounts, History
from service.storage.base import PAGE, StorageDamagedError

STATES = (
    "observed",
    "without_reward",
    "overridden",
    "sticky",
    "without_first",
    "expired",
    "cancelled",
    "open",
    "partial",
    "stop",
)


class Answer(NamedTuple):
    """What the log says to one question. outcome: good or bad for the bandit, or unclear."""

    title: str
    number: str
    text: str
    outcome: Literal["good", "bad", "unclear"]


@dataclass(frozen=True, kw_only=True)
class ArmLine:
    """One arm.

    reward, cost, cost_per_reward: of its own outcomes, on the prompts that it was played for.
    fixed, fixed_cost: reward, and cost per reward, had it always been played; None where the log cannot say it.
    """

    name: str
    is_active: bool
    counts: ArmCounts
    share: float
    fixed: Known | None
    fixed_cost: Known | None
    verdict: str
    reason: str
    cost_per_reward: Known | None

    @property
    def reward(self) -> float | None:
        """Mean reward of its calls."""
        return self.counts.reward / self.counts.rewarded if self.counts.rewarded else None

    @property
    def cost(self) -> float | None:
        """Mean cost of its calls."""
        return self.counts.cost / self.counts.outcomes if self.counts.outcomes else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of one bandit.

    counts: decisions by state.  solves: rewards are 0 or 1.  examples: group -> ids of prompts.
    """

    bandit: str
    policy: str
    offset: int
    first: str
    last: str
    confidence: float
    counts: dict[str, int]
    arms: list[ArmLine]
    reward: Known | None
    gain: Gain | None
    exploration: Exploration | None
    prompt: PromptValue | None
    cost_per_reward: Known | None
    solves: bool
    examples: dict[int, list[str]]
    retrospective: Retrospective | None

    @property
    def percent(self) -> str:
        """The confidence as `95 %`."""
        return f"{100 * self.confidence:g} %"

    def name(self, arm: int) -> str:
        """Of an arm."""
        return self.arms[arm].name

    def names(self, arms: tuple[int, ...]) -> str:
        """Names of arms for a sentence: the first three."""
        shown = ", ".join(repr(self.name(arm)) for arm in arms[:3])
        return shown if len(arms) <= 3 else f"{shown} and {len(arms) - 3} more"


async def read(source: Source, *, quiet: bool) -> tuple[LogReader, History]:
    """The whole log, in two passes: outcomes are as they were amended last."""
    amended: dict[str, Mapping[str, Any]] = {}
    async with aclosing(source.entries()) as entries:
        async for _, payload in entries:
            amended |= amendments([payload])
    reader, history = LogReader(amended), History()
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task(f"reading {source.name}", total=None)
        async with aclosing(source.entries()) as entries:
            async for offset, payload in entries:
                try:
                    closed = reader.add(payload, offset=offset)
                except LogError as error:
                    raise StorageDamagedError(f"{source.name}, entry {offset}", str(error)) from None
                if closed is not None:
                    history.add(closed)
                if offset % PAGE == 0:
                    progress.update(task, completed=offset)
    if not reader.created:
        raise StorageDamagedError(source.name, "the log is empty")
    for decision in reader.still_open():
        history.add(decision)
    return reader, history


def build(
    reader: LogReader, history: History, *, confidence: float, groups: int, reward_range: tuple[float, float] | None
) -> Report:
    """groups: of prompts, at most. Raises ValueError where rewards are outside of reward_range."""
    active = [index for index, arm in enumerate(reader.arms) if arm.is_active] or list(range(len(reader.arms)))
    past, examples = history.retrospective(len(reader.arms), groups=groups, confidence=confidence)
    policy = reader.policy
    learns_reward = policy not in POLICIES or "reward" in POLICIES[policy].needs
    played, paid, earned = (np.array(values) for values in (history.played, history.paid, history.earned))
    episodes = np.unique(np.array(history.paid_cluster, dtype=np.int64), return_inverse=True)[1]

    def cost_per_reward(where: np.ndarray) -> Known | None:
        if not where.any() or not paid[where].any():
            return None
        clusters = np.unique(episodes[where], return_inverse=True)[1]
        return ratio_of_sums(paid[where], earned[where], clusters=clusters, confidence=confidence)

    arms = []
    for index, arm in enumerate(reader.arms):
        counts, fixed = history.arms.get(index, ArmCounts()), None if past is None else past.fixed_arms[index]
        verdict = None if fixed is None else fixed.verdict
        drawn = history.counts["decisions"] - history.counts["stop"]
        arms.append(
            ArmLine(
                name=arm.name,
                is_active=arm.is_active,
                counts=counts,
                share=counts.decisions / drawn if drawn else 0.0,
                fixed=None if fixed is None or not fixed.is_known else fixed.value,
                fixed_cost=None if fixed is None or not fixed.is_known else fixed.cost_per_reward,
                verdict="cannot_answer" if verdict is None else verdict.kind,
                reason="no outcome has a reward" if verdict is None else verdict.reason,
                cost_per_reward=cost_per_reward(played == index),
            )
        )
    return Report(
        bandit=reader.bandit,
        policy=policy,
        offset=reader.offset,
        first=history.first,
        last=history.last,
        confidence=confidence,
        counts={
            "decisions": history.counts["decisions"],
            **{state: history.counts[state] for state in STATES},
            "imported": reader.imported,
        },
        arms=arms,
        reward=None if past is None else past.known(past.played),
        gain=None if past is None else past.gain(active, reward_range=reward_range),
        exploration=past.exploration() if past is not None and learns_reward else None,
        prompt=None if past is None else past.prompt_value(active),
        cost_per_reward=cost_per_reward(np.ones(len(played), dtype=bool)),
        solves=bool(len(earned)) and bool(np.isin(earned, (0.0, 1.0)).all()),
        examples=examples,
        retrospective=past,
    )


# -- in sentences ----------------------------------------------------------------------------------------------------------------


def signed(value: float) -> str:
    """With its sign, to three digits."""
    return f"{value:+.3g}"


def span(interval: Interval, form: str = "+.3g") -> str:
    """An interval."""
    return f"{interval.low:{form}} to {interval.high:{form}}"


def answers(report: Report) -> Iterator[Answer]:
    """What the log says, the question that matters most first."""
    yield _gain(report)
    if report.exploration is not None:
        yield _exploration(report, report.exploration)
    yield _prompt(report)
    yield _cost(report)
    yield _missing(report)


def _sign(interval: Interval, *, is_good: bool = True) -> Literal["good", "bad", "unclear"]:
    if interval.low <= 0.0 <= interval.high:
        return "unclear"
    return "good" if (interval.low > 0.0) == is_good else "bad"


def _gain(report: Report) -> Answer:
    title, found = "Gain over the best fixed arm", report.gain
    if found is None:
        arm = max(report.arms, key=lambda arm: arm.share)
        text = f"Of no arm the log says what it alone would have earned; of {arm.name!r}: {arm.reason}"
        return Answer(title, "not known", text, "unclear")
    low, high = found.value.interval
    said = {
        "good": f"Choosing paid: always {report.name(found.best)!r}, the best fixed arm, would have earned less.",
        "bad": f"Choosing has not paid so far: always {report.name(found.best)!r} would have earned more.",
        "unclear": f"Whether choosing pays beyond always {report.name(found.best)!r}, the best fixed arm, is open.",
    }[_sign(found.value.interval)]
    text = f"{said} Per decision {signed(found.value.value)} ({report.percent}: {span(found.value.interval)}); "
    text += f"doubly robust {signed(found.doubly_robust.value)} ({span(found.doubly_robust.interval)})."
    if found.anytime is not None:
        text += f" At every moment at once: {span(found.anytime)}."
    if found.unknown:
        text += f" The log cannot speak of {report.names(found.unknown)}: {report.arms[found.unknown[0]].reason}"
    return Answer(title, f"{signed(low)} to {signed(high)}", text, _sign(found.value.interval))


def _exploration(report: Report, found: Exploration) -> Answer:
    text = (
        f"{found.probability:.1%} of the probability went to other arms than the one of the highest estimate; by the estimates "
        f"at the decisions that cost {found.expected.value:.3g} per decision ({span(found.expected.interval, '.3g')}). "
    )
    if found.verdict.kind == "cannot_answer":
        text += f"By outcomes it is not known: {found.verdict.reason}"
        outcome: Literal["good", "bad", "unclear"] = "unclear"
    else:
        outcome = _sign(found.earned.interval, is_good=False)
        text += (
            f"By outcomes, always the highest estimate would have earned {signed(found.earned.value)} per decision "
            f"({report.percent}: {span(found.earned.interval)})."
        )
    return Answer("What exploration cost", f"{found.expected.value:.3g} per decision", text, outcome)


def _prompt(report: Report) -> Answer:
    title, found = "Where the prompt pays", report.prompt
    if found is None:
        reason = "decisions carry no prompt, or are too few to be grouped"
        if report.gain is None:
            reason = "no fixed arm is known to compare with"
        return Answer(title, "not known", f"It cannot be said: {reason}.", "unclear")
    paying = [group for group in found.groups if group.gain is not None and group.gain.interval.low > 0.0]
    losing = [group for group in found.groups if group.gain is not None and group.gain.interval.high < 0.0]
    unknown = sum(group.gain is None for group in found.groups)
    unclear = len(found.groups) - len(paying) - len(losing) - unknown
    text = (
        f"Prompts fall into {len(found.groups)} groups of similar ones. What was played earned more than the best fixed arm in "
        f"{len(paying)} of them, and less in {len(losing)}. In {unclear} the difference may be chance so far (its "
        "interval holds 0)"
    ) + (f", and of {unknown} the log cannot say it." if unknown else ".")
    number = f"{len(paying)} better, {len(losing)} worse, {unclear + unknown} not known"
    if not found.chosen or found.verdict.kind == "cannot_answer":
        few = "Too few decisions of each group drew one arm to say which is best there."
        reason = f"Which arm is best in each is not known: {found.verdict.reason}" if found.chosen else few
        return Answer(title, number, f"{text} {reason}", "unclear")
    where = "" if found.chosen > 0.999 else f" (known for {found.chosen:.0%} of the prompts)"
    text += (
        f" Playing in each group the arm that is best there{where} would earn {signed(found.value.value)} per decision beyond "
        f"the best fixed arm ({report.percent}: {span(found.value.interval)})."
    )
    return Answer(title, number, text, _sign(found.value.interval))


def unit(report: Report) -> str:
    """What a cost is divided by."""
    return "solved prompt" if report.solves else "unit of reward"


def _cost(report: Report) -> Answer:
    title, found = f"Cost per {unit(report)}", report.cost_per_reward
    if found is None:
        return Answer(title, "not known", "There are no costs, or the mean reward may be 0.", "unclear")
    text = f"Mean cost over mean reward, of all outcomes with a reward: {found.value:.4g} ({report.percent}: "
    text += f"{span(found.interval, '.4g')})."
    best = None if report.gain is None else report.arms[report.gain.best]
    if best is not None and best.fixed_cost is not None:
        text += (
            f" Always {best.name!r}, the best fixed arm: {best.fixed_cost.value:.4g} ({span(best.fixed_cost.interval, '.4g')})."
        )
    return Answer(title, f"{found.value:.4g}", text, "unclear")


def _missing(report: Report) -> Answer:
    counts = report.counts
    made = counts["decisions"]
    parts = [
        (counts["expired"], "expired without an outcome"),
        (counts["without_reward"], "without a reward"),
        (counts["overridden"], "overridden by the client"),
        (counts["without_first"], "of a session whose first decision is not known"),
        (counts["cancelled"], "cancelled"),
        (counts["open"] + counts["partial"], "still open"),
        (counts["stop"], "stops"),
    ]
    said = ", ".join(f"{count:,} {words}" for count, words in parts if count)
    usable = 0 if report.retrospective is None else len(report.retrospective.arms)
    lost = counts["expired"] + counts["without_reward"]
    text = f"Of {made:,} decisions {usable:,} have a reward of the arm that was drawn; all estimates are of these."
    if counts["sticky"] > counts["without_first"]:
        text += " Those that got the arm of their session count with the weights of its first decision."
    if said:
        text += f" The others: {said}."
    if counts["imported"]:
        text += f" {counts['imported']:,} outcomes were imported, and are in no number here."
    return Answer("What is missing", f"{lost / made:.1%}" if made else "0", text, "bad" if lost > 0.1 * made else "unclear")


# -- as JSON and text ------------------------------------------------------------------------------------------------------------


def _known(found: Known | None) -> dict[str, Any] | None:
    if found is None or not all(map(math.isfinite, (found.value, *found.interval))):
        return None
    return {"value": found.value, "interval": list(found.interval)}


def as_json(report: Report) -> dict[str, Any]:
    """The numbers, by name; null = not known."""
    gain, exploration, prompt = report.gain, report.exploration, report.prompt
    return {
        "bandit": report.bandit,
        "policy": report.policy,
        "offset": report.offset,
        "from": report.first or None,
        "to": report.last or None,
        "confidence": report.confidence,
        "decisions": report.counts,
        "reward": _known(report.reward),
        "gain": gain
        and {
            "best_fixed": report.name(gain.best),
            **(_known(gain.value) or {}),
            "doubly_robust": _known(gain.doubly_robust),
            "anytime_interval": None if gain.anytime is None else list(gain.anytime),
            "verdict": report.arms[gain.best].verdict,
            "reason": report.arms[gain.best].reason,
            "unknown": [report.name(arm) for arm in gain.unknown],
        },
        "exploration": exploration
        and {
            "probability": exploration.probability,
            "expected": _known(exploration.expected),
            "earned": _known(exploration.earned),
            "verdict": exploration.verdict.kind,
            "reason": exploration.verdict.reason,
        },
        "prompt": prompt
        and {
            **((_known(prompt.value) if prompt.chosen else None) or {"value": None, "interval": None}),
            "chosen": prompt.chosen,
            "verdict": prompt.verdict.kind,
            "reason": prompt.verdict.reason,
            "groups": [
                {
                    "decisions": group.decisions,
                    "reward": group.reward,
                    "gain": _known(group.gain),
                    "arm": report.name(group.arm),
                    "share": group.share,
                    "examples": report.examples.get(group.group, []),
                }
                for group in prompt.groups
            ],
        },
        "cost_per_reward": _known(report.cost_per_reward),
        "arms": [
            {
                "name": arm.name,
                "active": arm.is_active,
                "decisions": arm.counts.decisions,
                "share": arm.share,
                "outcomes": arm.counts.outcomes,
                "expired": arm.counts.expired,
                "overridden": arm.counts.overridden,
                "reward": arm.reward,
                "cost": arm.cost,
                "cost_per_reward": _known(arm.cost_per_reward),
                "always": arm.fixed and {**(_known(arm.fixed) or {}), "cost_per_reward": _known(arm.fixed_cost)},
                "verdict": arm.verdict,
                "reason": arm.reason,
            }
            for arm in report.arms
        ],
    }


COLORS = {"good": "green", "bad": "red", "unclear": "cyan"}


def as_text(report: Report) -> RenderableType:
    """For a terminal of 80 columns and more."""
    parts: list[RenderableType] = [Text.from_markup(f"[bold]{escape(report.bandit)}[/bold]  {escape(subtitle(report))}"), Text()]
    for answer in answers(report):
        parts.append(Text.assemble((answer.title, "bold"), "  ", (answer.number, COLORS[answer.outcome])))
        parts.append(Padding(Text(answer.text), (0, 0, 1, 2)))
    arms = Table(title="arms", title_justify="left", title_style="bold", box=None, pad_edge=False, expand=False)
    for name in ("arm", "share", "reward", "cost", "always", "", "verdict"):
        arms.add_column(name, justify="left" if name in ("arm", "verdict") else "right", overflow="fold")
    for arm in report.arms:
        arms.add_row(
            escape(arm.name) + ("" if arm.is_active else " (retired)"),
            f"{arm.share:.1%}",
            "" if arm.reward is None else f"{arm.reward:.3g}",
            "" if arm.cost is None else f"{arm.cost:.3g}",
            "" if arm.fixed is None else f"{arm.fixed.value:.3g}",
            "" if arm.fixed is None else span(arm.fixed.interval, ".3g"),
            arm.verdict.replace("_", " "),
        )
    parts.append(arms)
    if report.prompt is not None:
        groups = Table(title="\ngroups of prompts", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for name in ("decisions", "mostly", "share", "reward", "gain", "", "prompts such as"):
            groups.add_column(name, justify="left" if name in ("mostly", "prompts such as") else "right", overflow="fold")
        for group in report.prompt.groups:
            groups.add_row(
                f"{group.decisions:,}",
                escape(report.name(group.arm)),
                f"{group.share:.0%}",
                f"{group.reward:.3g}",
                "" if group.gain is None else signed(group.gain.value),
                "" if group.gain is None else span(group.gain.interval),
                escape(", ".join(report.examples.get(group.group, []))),
            )
        parts.append(groups)
    return Group(*parts)


def subtitle(report: Report) -> str:
    """What was read."""
    days = f"{report.first[:10]} to {report.last[:10]}" if report.first else "no decision yet"
    return f"{report.policy}: {report.counts['decisions']:,} decisions, {days}, up to offset {report.offset:,}"
