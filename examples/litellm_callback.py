"""The callback of `litellm_config.yaml`: a bandit made of the proxy's deployments, with a reward of its own."""

from __future__ import annotations

from typing import Any

from nextarm.litellm import NextarmCallback


def reward(response: Any, kwargs: Any) -> float | None:
    """1 for an answer that ended by itself, 0 for one that was cut; None leaves the reward to a later post."""
    choices = getattr(response, "choices", None)
    return None if not choices else float(choices[0].finish_reason == "stop")


callback = NextarmCallback(
    bandit={"smart": "router"},
    reward=reward,
    sync_arms=True,
    create={"policy": {"kind": "thompson"}, "objective": {"reward": 1.0, "cost": -5.0}},
)
