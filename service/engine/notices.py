"""Notices for the owner of a bandit: what is wrong with what it learns from, and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bandits.hyperparameters import declared
from bandits.types import Policy
from service.engine.ledger import ArmRecord, Ledger

ENOUGH_REWARDS = 100
"""From here on the range of a bandit's rewards says something about their scale."""
ENOUGH_DECISIONS = 100
"""From here on the share of them that a shadow is left out of says that it is too slow."""
SMALL_SHARE = 0.05
"""Of the scale that a policy is set for: rewards that span less of it are drowned by its optimism."""


def notices_of_rewards(policy: Policy, ledger: Ledger) -> list[str]:
    """Of rewards that do not fit the scale that the policy is set for."""
    scale, seen = policy.reward_scale, ledger.reward_range
    if scale is None or seen is None:
        return []
    if scale[0] <= seen[0] and seen[1] <= scale[1]:
        return _notices_of_small_rewards(policy, ledger, scale, seen)
    return [
        f"Rewards from {seen[0]:g} to {seen[1]:g} were learned, and {policy.kind} is set for rewards in "
        f"[{scale[0]:g}, {scale[1]:g}]: its optimism is out of scale, and choices can be no better than random. "
        "Post rewards scaled into that range, or create a bandit with prior_mean and exploration on the scale of the rewards."
    ]


def _notices_of_small_rewards(policy: Policy, ledger: Ledger, scale: tuple[float, float], seen: tuple[float, float]) -> list[str]:
    """Of rewards that all arms share but for a sliver of the scale. Less exploration than by default asks for less of it.
    (Equal rewards have nothing that could be scaled.)
    """
    count, span = sum(arm.rewards for arm in ledger.arms), seen[1] - seen[0]
    (optimism,) = (item for item in declared(type(policy)) if item.name in ("exploration", "noise"))
    share = SMALL_SHARE * min(1.0, getattr(policy, optimism.name) / optimism.default)
    if count < ENOUGH_REWARDS or not 0.0 < span < share * (scale[1] - scale[0]):
        return []
    return [
        f"The {count} rewards that were learned lie between {seen[0]:g} and {seen[1]:g}, and {policy.kind} is set for "
        f"rewards in [{scale[0]:g}, {scale[1]:g}]: their differences are small beside its optimism, and the best arm is "
        f"found late. Post rewards scaled to [{scale[0]:g}, {scale[1]:g}], or create a bandit with prior_mean and a smaller "
        f"{optimism.name} on the scale of the rewards."
    ]


def notices_of_arms(policy: Policy, arms: Sequence[ArmRecord], lost: Iterable[int]) -> list[str]:
    """Of arms that have no score any more. lost: their indices (`Policy.arms_without_estimate`)."""
    return [
        f"The numbers of arm {arms[index].name!r} are not finite any more, so it has no score and is not chosen; where no "
        "arm has one, all are equally likely. Its log holds numbers too large for these hyperparameters: "
        f"create another bandit with {_remedy(policy)}."
        for index in lost
    ]


def notices_of_shadows(ledger: Ledger, failures: Mapping[str, str]) -> list[str]:
    """Of shadows that learn nothing more, or that most decisions leave out. failures: by name; "" = it learns."""
    found = []
    for name, shadow in ledger.shadows.items():
        asked = shadow.decisions + shadow.left_out
        if failures.get(name):
            found.append(f"Shadow {name!r} learns nothing more: {failures[name]}. Delete it, and create it again.")
        elif asked >= ENOUGH_DECISIONS and shadow.left_out > shadow.decisions:
            found.append(
                f"Shadow {name!r} is left out of {shadow.left_out} of {asked} decisions: its weights take too long, or it cannot "
                "decide on their prompts. Delete it, or create it with less to compute."
            )
    return found


def _remedy(policy: Policy) -> str:
    """Against numbers that are too large, by what the policy can be set to."""
    given = {item.name: getattr(policy, item.name) for item in declared(type(policy))}
    ways = ["normalize: true"] if given.get("normalize") is False else []
    ways += ["a larger ridge"] if "ridge" in given else []
    if "output" in policy.needs:
        ways.append("outputs (and a reference) that are scaled down")
    return " or ".join(ways or ["rewards that are scaled down"])
