"""Plays one library in one world and prints what came of it as JSON; run by `bench.comparison.peers` in the environment of that
library.

    python -m bench.comparison.drive '{"entry": "MABWiser LinUCB", "world": "out/peers/worlds/clusters.npz", ...}'

job  entry  a name of `learners.ENTRIES`            seeds  that are reported          warm  rounds before costs are measured, or
     world  features, rewards, order_SEED           tune   that choose the setting          absent: rewards are measured instead
     tune_rounds  how many rounds of a tuning seed
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.comparison.learners import ENTRIES, Entry, Floats, Learner, Setting


def played(
    learner: Learner, features: Floats, rewards: Floats, *, clock: Callable[[], float] = lambda: 0.0
) -> tuple[Floats, Floats]:
    """(T,) rewards and (T, 2) seconds of choosing and learning, over the rows in order."""
    earned, taken = np.empty(len(features)), np.empty((len(features), 2))
    for t, x in enumerate(features):
        begin = clock()
        arm = learner.choose(x)
        middle = clock()
        earned[t] = rewards[t, arm]
        again = clock()
        learner.learn(x, arm, float(earned[t]))
        taken[t] = middle - begin, clock() - again
    return earned, taken


def tuned(entry: Entry, world: Mapping[str, Any], seeds: list[int], rounds: int) -> tuple[Setting, list[float]]:
    """The setting of the grid with the highest mean reward over these seeds, and what every setting reached."""
    if len(entry.grid) == 1:
        return entry.grid[0], []
    reached = [float(np.mean([mean_reward(entry, world, setting, seed, rounds) for seed in seeds])) for setting in entry.grid]
    return entry.grid[int(np.argmax(reached))], reached


def mean_reward(entry: Entry, world: Mapping[str, Any], setting: Setting, seed: int, rounds: int) -> float:
    """Of one seed: the order of its rows, and the learner's own chance."""
    order = world[f"order_{seed}"][:rounds]
    features, rewards = world["features"][order], world["rewards"][order]
    learner = entry.make(features.shape[1], rewards.shape[1], seed, setting)
    return float(played(learner, features, rewards)[0].mean())


def costs(entry: Entry, world: Mapping[str, Any], warm: int) -> dict[str, Any]:
    """Median CPU seconds of a choice and of an update, all threads of the process, after the warm-up; the least of three runs, as
    neighbours on a shared machine only ever add.
    """
    order = world["order_0"]
    features, rewards = world["features"][order], world["rewards"][order]
    medians = []
    for _ in range(3):
        learner = entry.make(features.shape[1], rewards.shape[1], 0, entry.grid[0])
        medians.append(np.median(played(learner, features, rewards, clock=time.process_time)[1][warm:], axis=0))
    choose, learn = np.min(medians, axis=0)
    return {"choose": float(choose), "learn": float(learn)}


def main() -> None:
    """Do the job of the command line."""
    job = json.loads(sys.argv[1])
    entry, world = ENTRIES[job["entry"]], dict(np.load(job["world"]))
    if "warm" in job:
        answer = costs(entry, world, job["warm"])
    else:
        begin = time.process_time()
        setting, reached = tuned(entry, world, job["tune"], job["tune_rounds"])
        rewards = [mean_reward(entry, world, setting, seed, 10**9) for seed in job["seeds"]]
        answer = {"setting": setting, "tuning": reached, "rewards": rewards, "seconds": time.process_time() - begin}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
