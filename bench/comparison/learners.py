"""One face for every library: `choose(x)` and `learn(x, arm, reward)`, for `bench.comparison.drive`.

Imported in the benches' own environment as well, so this file needs NumPy alone, and each maker imports its library itself. What
a caller has is a NumPy vector; what a library makes of it (text, a dict, a row) is part of its cost, and is counted.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Setting = Mapping[str, Any]


class Learner(Protocol):
    """A library behind one face."""

    def choose(self, x: Floats) -> int:
        """The arm for features (d,)."""

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        """The outcome of an arm."""


Maker = Callable[[int, int, int, Setting], Learner]
"""d, K, seed, setting -> learner."""


def random_fourier(d: int, count: int, bandwidth: float, seed: int) -> Callable[[Floats], Floats]:
    """Our features, written once more without torch: [cos(Wx), sin(Wx)] / sqrt(D)."""
    w = np.random.default_rng(seed).standard_normal((count, d)) / bandwidth

    def lift(x: Floats) -> Floats:
        phases = w @ x
        return np.asarray(np.concatenate([np.cos(phases), np.sin(phases)]) / np.sqrt(count))

    return lift


# -- ours ------------------------------------------------------------------------------------------------------------------


class Nextarm:
    """Ours, in process: weights, draw, fold, prepare."""

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        self._torch = importlib.import_module("torch")
        self._draw, self._states = importlib.import_module("bandits.draw"), importlib.import_module("bandits.state")
        self._types = importlib.import_module("bandits.types")
        self._torch.set_num_threads(1)
        given = dict(setting)
        self.policy = importlib.import_module("bandits.registry").build(given.pop("kind"), given, dim=d, seed=seed)
        self.state = self._states.start(self.policy, arms=arms)
        self.seed, self.t, self.allowed = seed, 0, (True,) * arms
        self.nothing = self._torch.empty(0, dtype=self._torch.float64)

    def choose(self, x: Floats) -> int:
        features = self._torch.from_numpy(x) if self.policy.dim and self.policy.contextual else self.nothing
        context = self._types.Context(features=features, allowed=self.allowed)
        self.t += 1
        row = self.policy.weights(self.state, [context]).values[0]
        return int(self._draw.draw(row, f"{self.seed}/{self.t}").arm)

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        features = self._torch.from_numpy(x) if self.policy.contextual else self.nothing
        seen = self._types.Observation(arm=arm, features=features, reward=reward)
        self.state = self.policy.prepare(self._states.fold(self.policy, self.state, seen))


# -- theirs ----------------------------------------------------------------------------------------------------------------


class VowpalWabbit:
    """`--cb_explore_adf --squarecb`: the prompt is shared, an arm is a name; -q crosses both. A cost is 1 - reward.

    features: "linear" the vector itself, "fourier" our 128 random frequencies.
    """

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        options = f"--cb_explore_adf --squarecb --gamma_scale {setting['gamma_scale']} -l {setting['rate']} -q xa --quiet"
        self.vw = importlib.import_module("vowpalwabbit").Workspace(f"{options} --random_seed {seed + 1}")
        self.lift = random_fourier(d, 128, 1.0, seed) if setting["features"] == "fourier" else None
        self.rng, self.arms = np.random.default_rng(seed), arms
        self.last: tuple[str, list[float]] = ("", [])

    def _lines(self, x: Floats) -> str:
        z = x if self.lift is None else self.lift(x)
        return "shared |x " + " ".join([f"{i}:{v:.6g}" for i, v in enumerate(z.tolist()) if v])

    def choose(self, x: Floats) -> int:
        shared = self._lines(x)
        weights = self.vw.predict([shared, *(f"|a {arm}" for arm in range(self.arms))])
        self.last = shared, weights
        drawn = int(np.searchsorted(np.cumsum(weights), self.rng.random(), side="right"))
        return min(drawn, self.arms - 1)

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        shared, weights = self.last
        lines = [f"0:{1.0 - reward:.6g}:{max(weights[k], 1e-6):.6g} |a {k}" if k == arm else f"|a {k}" for k in range(self.arms)]
        self.vw.update([shared, *lines])


class Mabwiser:
    """MABWiser: LinUCB, or epsilon-greedy over a linear model per arm. `partial_fit` per outcome."""

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        mab = importlib.import_module("mabwiser.mab")
        policy = mab.LearningPolicy
        linear: dict[str, float] = {"l2_lambda": setting["ridge"]}
        chosen = (
            policy.LinUCB(alpha=setting["alpha"], **linear)
            if setting["kind"] == "lin-ucb"
            else policy.LinGreedy(epsilon=setting["epsilon"], **linear)
        )
        self.mab = mab.MAB(arms=list(range(arms)), learning_policy=chosen, seed=seed)
        # its first fit needs an example of every arm: one zero reward at the origin, which a ridge regression does not notice
        self.mab.fit(decisions=list(range(arms)), rewards=[0.0] * arms, contexts=np.zeros((arms, d)))

    def choose(self, x: Floats) -> int:
        return int(self.mab.predict(x[None]))

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        self.mab.partial_fit([arm], [reward], x[None])


class River:
    """river's LinUCBDisjoint: a Bayesian linear regression per arm, features in a dict. Its bonus has no multiplier: alpha = beta
    scales it, at a ridge of 1.
    """

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        bandit = importlib.import_module("river.bandit")
        self.learner = bandit.LinUCBDisjoint(alpha=setting["alpha"], beta=setting["beta"], seed=seed)
        self.arms = list(range(arms))

    def choose(self, x: Floats) -> int:
        return int(self.learner.pull(self.arms, context=dict(enumerate(x.tolist()))))

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        self.learner.update(arm, dict(enumerate(x.tolist())), reward)


class ContextualBandits:
    """contextualbandits' LinUCB, method "sm" (rank-one updates)."""

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        online = importlib.import_module("contextualbandits.online")
        self.learner = online.LinUCB(
            nchoices=arms, alpha=setting["alpha"], lambda_=setting["ridge"], use_float=False, random_state=seed + 1, njobs=1
        )
        self.rng, self.fitted, self.arms = np.random.default_rng(seed), False, arms

    def choose(self, x: Floats) -> int:
        if not self.fitted:
            return int(self.rng.integers(self.arms))
        return int(self.learner.predict(x[None])[0])

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        self.learner.partial_fit(x[None], np.array([arm]), np.array([reward]))
        self.fitted = True


class ParetoBandit:
    """ParetoBandit's router on given vectors: no budget, equal prices, cold start. It clips rewards, here to [-1, 1]."""

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        logging.disable(logging.WARNING)
        module = importlib.import_module("pareto_bandit")
        service = importlib.import_module("pareto_bandit.feature_service").FeatureService.for_precomputed(dimension=d)
        price = {"input_cost_per_m": 1.0, "output_cost_per_m": 1.0}
        registry = {f"arm-{arm}": dict(price) for arm in range(arms)}
        self.router = module.BanditRouter.create(
            model_registry=registry,
            priors="none",
            feature_service=service,
            bandit_seed=seed,
            cost_penalty=0.0,
            config=importlib.import_module("pareto_bandit.types").RouterConfig(reward_min=-1.0, reward_max=1.0),
            **setting,
        )
        self.request = ""

    def choose(self, x: Floats) -> int:
        name, log = self.router.route(x)
        self.request = log.request_id
        return int(name.removeprefix("arm-"))

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        self.router.process_feedback(self.request, reward=reward)


class LiteLlmRouter:
    """LiteLLM's router over K deployments of one name, `simple-shuffle`: a weighted random pick. It learns nothing."""

    def __init__(self, d: int, arms: int, seed: int, setting: Setting) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
        names = [f"openai/arm-{arm}" for arm in range(arms)]
        listed = [{"model_name": "any", "litellm_params": {"model": name, "api_key": "none"}} for name in names]
        self.router = importlib.import_module("litellm").Router(model_list=listed, routing_strategy="simple-shuffle")
        self.messages = [{"role": "user", "content": "Which arm?"}]

    def choose(self, x: Floats) -> int:
        found = self.router.get_available_deployment(model="any", messages=self.messages)
        return int(str(found["litellm_params"]["model"]).rpartition("-")[2])

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        """Nothing."""


# -- who plays what --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """make: a learner.  package: what pip installs, "" for ours.  grid: settings, of which the best on the tuning seeds plays.
    learns: whether it is worth playing for rewards.
    """

    make: Maker
    package: str
    grid: tuple[Setting, ...]
    learns: bool = True


def _vw(features: str) -> tuple[Setting, ...]:
    return tuple({"features": features, "gamma_scale": g, "rate": r} for g in (10.0, 100.0, 1000.0) for r in (0.1, 0.5, 2.0))


ENTRIES: Mapping[str, Entry] = {
    "nextarm pak-ucb": Entry(
        Nextarm,
        "",
        tuple({"kind": "pak-ucb", "exploration": e, "ridge": r} for e in (0.03, 0.1, 0.3) for r in (0.3, 1.0, 3.0)),
    ),
    "nextarm lin-ucb": Entry(
        Nextarm,
        "",
        tuple({"kind": "lin-ucb", "exploration": e, "ridge": r} for e in (0.03, 0.1, 0.3) for r in (0.3, 1.0, 3.0)),
    ),
    "nextarm greedy": Entry(Nextarm, "", ({"kind": "greedy"},)),
    "VW squarecb": Entry(VowpalWabbit, "vowpalwabbit", _vw("linear")),
    "VW squarecb, our features": Entry(VowpalWabbit, "vowpalwabbit", _vw("fourier")),
    "MABWiser LinUCB": Entry(
        Mabwiser, "mabwiser", tuple({"kind": "lin-ucb", "alpha": a, "ridge": 1.0} for a in (0.1, 0.5, 1.25))
    ),
    "MABWiser LinGreedy": Entry(
        Mabwiser, "mabwiser", tuple({"kind": "epsilon-greedy", "epsilon": e, "ridge": 1.0} for e in (0.02, 0.1))
    ),
    "river LinUCBDisjoint": Entry(River, "river", tuple({"alpha": b, "beta": b} for b in (1.0, 10.0, 100.0))),
    "contextualbandits LinUCB": Entry(
        ContextualBandits, "contextualbandits", tuple({"alpha": a, "ridge": 1.0} for a in (0.1, 0.5, 1.0))
    ),
    "ParetoBandit": Entry(
        ParetoBandit, "paretobandit", tuple({"alpha": a, "forgetting_factor": f} for a in (0.01, 0.1, 0.5) for f in (0.997, 1.0))
    ),
    "LiteLLM router": Entry(LiteLlmRouter, "litellm<1.82", ({},), learns=False),  # 1.82.7, 1.82.8 and 1.107.x were compromised
}
