"""Was every promise kept? Acknowledgements against the log, the log against what was learned, digests against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.faults.clients import Key, Record, outcome_body

CLOSING = ("observed", "expired", "cancelled")


@dataclass
class Verdict:
    """lost: acknowledged and not in the log as it was acknowledged.  twice: in the log, or learned, more than once."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)  # digests
    events: Counter[str] = field(default_factory=Counter)

    @property
    def broken(self) -> list[str]:
        """Everything that must not be."""
        return [
            *(f"lost: {line}" for line in self.lost),
            *(f"twice: {line}" for line in self.twice),
            *(f"digests differ: {line}" for line in self.differing),
        ]

    def check_log(self, bandit: str, events: list[dict[str, Any]], record: Record, arms_added: list[str]) -> None:
        """Every acknowledged event of a bandit is in its log exactly once."""
        self.events.update(event["event"] for event in events)
        if [event["offset"] for event in events] != list(range(1, len(events) + 1)):
            self.lost.append(f"{bandit}: the offsets have a gap")
        names = [arm["name"] for arm in events[0]["arms"]] + [e["name"] for e in events if e["event"] == "arm_added"]
        self._check_arms(bandit, names, arms_added)
        decided = self._once(bandit, [event for event in events if event["event"] == "decided"])
        closed = self._once(bandit, [event for event in events if event["event"] in CLOSING])
        for key, (offset, arm) in _of(bandit, record.decided).items():
            event = decided.get(key[1])
            if event is None or (event["offset"], names[event["arm"]]) != (offset, arm):
                self.lost.append(f"decision {key} at {offset} for {arm}: {event and (event['offset'], event['arm'])}")
        for key, offset in _of(bandit, record.observed).items():
            event, body = closed.get(key[1]), outcome_body(key)
            if event is None or (event["event"], event["offset"], event.get("reward")) != ("observed", offset, body["reward"]):
                self.lost.append(f"outcome {key} at {offset}: {event and (event['event'], event['offset'])}")
        for key in record.cancelled:
            if key[0] == bandit and closed.get(key[1], {}).get("event") != "cancelled":
                self.lost.append(f"cancellation {key}")

    def check_learned(self, bandit: str, events: list[dict[str, Any]], shown: dict[str, Any]) -> None:
        """What the service has learned per arm is what its log says, event by event."""
        chosen = {event["id"]: event["arm"] for event in events if event["event"] == "decided"}
        outcomes: Counter[int] = Counter()
        rewarded: Counter[int] = Counter()
        total: Counter[int] = Counter()
        for event in events:
            reward = event.get("reward")
            if event["event"] == "observed" or (event["event"] == "expired" and reward is not None):
                arm = event.get("arm", chosen[event["id"]])
                outcomes[arm] += 1
                if reward is not None:
                    rewarded[arm] += 1
                    total[arm] += reward
        for index, arm in enumerate(shown["arms"]):
            mean = total[index] / rewarded[index] if rewarded[index] else None
            same_mean = mean == arm["mean_reward"] or (mean is not None and abs(mean - (arm["mean_reward"] or 0.0)) < 1e-9)
            if arm["outcomes"] != outcomes[index] or not same_mean:
                self.twice.append(f"{bandit}, arm {arm['name']}: {arm['outcomes']} learned, {outcomes[index]} in the log")

    def check_digests(self, digests: dict[str, dict[str, tuple[int, str]]]) -> None:
        """digests: who -> bandit -> (offset, sha256); all must say the same."""
        (first, expected), *others = digests.items()
        for who, found in others:
            for bandit, digest in expected.items():
                if found.get(bandit) != digest:
                    self.differing.append(f"{bandit}: {first} {digest}, {who} {found.get(bandit)}")

    def _once(self, bandit: str, events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for event in events:
            if event["id"] in found:
                self.twice.append(
                    f"{bandit}: {event['event']} {event['id']} at {found[event['id']]['offset']} and {event['offset']}"
                )
            found[event["id"]] = event
        return found

    def _check_arms(self, bandit: str, names: list[str], acknowledged: list[str]) -> None:
        for name, count in Counter(names).items():
            if count > 1:
                self.twice.append(f"{bandit}: arm {name}")
        self.lost += [f"{bandit}: arm {name}" for name in acknowledged if name not in names]


def _of(bandit: str, told: dict[Key, Any]) -> dict[Key, Any]:
    return {key: value for key, value in told.items() if key[0] == bandit}
