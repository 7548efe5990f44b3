"""The same rounds for a textbook and for this package, for `bench.comparison.reference`: n samples seen, then round by round.

A side is a function that plays round t and answers the arm that it picked. What is *learned* is the outcome of arm t % K,
whatever was picked: so all sides of a duel always know the same, and their picks can be compared at any n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bandits import draw
from bandits import state as states
from bandits.functional.simplex import minimize_quadratic
from bandits.registry import build
from bandits.regression.kernel import KernelArm
from bandits.types import Context, Moments, Observation, Policy, State
from bench.comparison import environment, textbook
from bench.comparison.textbook import Floats, Kept

ARMS, DIM = 3, 384

Round = Callable[[int], int]
"""Play round t and answer the arm that was picked."""


def unit(rows: Floats) -> Floats:
    """Rows of length one."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def ours(policy: Policy, state: State, *, features: Floats | None, outcome: Callable[[int], Observation]) -> Round:
    """One round of this package: weights, fold, prepare. outcome: of round t."""
    kept = [policy.prepare(state)]
    vectors = None if features is None else torch.from_numpy(features)

    def play(t: int) -> int:
        now, nothing = kept[0], torch.empty(0, dtype=torch.float64)
        context = Context(allowed=(True,) * ARMS, features=nothing if vectors is None else vectors[t % len(vectors)])
        arm = draw.draw_at(policy.weights(now, [context]).values[0], draw.uniform(f"0/{t}")).arm
        kept[0] = policy.prepare(states.fold(policy, now, outcome(t)))
        return arm

    return play


def learned(policy: Policy, observations: Iterator[Observation]) -> State:
    """The state after these, of `ARMS` arms."""
    state = states.start(policy, arms=ARMS)
    for seen in observations:
        state = states.fold(policy, state, seen)
    return state


# -- the duels -------------------------------------------------------------------------------------------------------------


def prompts(n: int, *, dim: int = DIM) -> tuple[Floats, Floats, Floats, Floats]:
    """(K n, d) prompts in three clusters and (K n,) rewards to start with, (512, d) and (512,) for the rounds measured."""
    rng = np.random.default_rng(11)
    centres, slopes = unit(rng.normal(size=(3, dim))), rng.normal(size=(ARMS, dim))
    rows = unit(centres[rng.integers(0, 3, ARMS * n + 512)] + 0.7 * unit(rng.normal(size=(ARMS * n + 512, dim))))
    arm = np.arange(len(rows)) % ARMS
    rewards = (rng.random(len(rows)) < 0.5 + 0.3 * np.tanh((rows * slopes[arm]).sum(1))).astype(float)
    return rows[: ARMS * n], rewards[: ARMS * n], rows[ARMS * n :], rewards[ARMS * n :]


def pak(n: int) -> dict[str, Round]:
    """PAK-UCB with n samples per arm."""
    rows, rewards, later, paid = prompts(n)
    shared: dict[str, Any] = {"bandwidth": 1.0, "ridge": 1.0, "exploration": 1.0}

    def refit(*, general: bool) -> Round:
        known = [Kept(rows[arm::ARMS]) for arm in range(ARMS)], [Kept(rewards[arm::ARMS]) for arm in range(ARMS)]
        book = textbook.RefitKernel(*known, **shared, general=general)

        def play(t: int) -> int:
            arm = book.choose(later[t % 512])
            book.learn(t % ARMS, later[t % 512], paid[t % 512])
            return arm

        return play

    def outcome(t: int) -> Observation:
        return Observation(arm=t % ARMS, features=torch.from_numpy(later[t % 512]), reward=float(paid[t % 512]))

    sides = {"textbook, any matrix": refit(general=True), "textbook, Cholesky": refit(general=False)}
    exact = build("pak-ucb", {**shared, "random_features": None, "prior_mean": 0.0, "max_samples": 20_000}, dim=DIM)
    known = tuple(KernelArm(n, torch.from_numpy(rows[arm::ARMS]), torch.from_numpy(rewards[arm::ARMS])) for arm in range(ARMS))
    sides["exact kernel"] = ours(exact, State(known, exact.init_reference()), features=later, outcome=outcome)
    summed = build("pak-ucb", {**shared, "random_features": 128, "prior_mean": 0.0}, dim=DIM)
    seen = (Observation(arm=i % ARMS, features=torch.from_numpy(x), reward=float(rewards[i])) for i, x in enumerate(rows))
    sides["128 random features"] = ours(summed, learned(summed, seen), features=later, outcome=outcome)
    return sides


def dak(n: int) -> dict[str, Round]:
    """DAK-UCB with n samples per arm and outputs of length 384."""
    rows, rewards, later, paid = prompts(n)
    outputs = np.random.default_rng(12).normal(size=(len(rows) + 512, DIM)) / np.sqrt(DIM)
    shared: dict[str, Any] = {
        "output_bandwidth": 1.0,
        "ridge": 1.0,
        "exploration": 0.3,
        "diversity_exploration": 0.3,
        "diversity_weight": 1.0,
    }
    book = textbook.RefitDiversity(
        [Kept(rows[arm::ARMS]) for arm in range(ARMS)],
        [Kept(rewards[arm::ARMS]) for arm in range(ARMS)],
        [Kept(frozen(rows[arm::ARMS], outputs[: len(rows)][arm::ARMS])) for arm in range(ARMS)],
        [Kept(outputs[: len(rows)][arm::ARMS]) for arm in range(ARMS)],
        bandwidth=1.0,
        **shared,
    )

    def refit(t: int) -> int:
        arm = book.choose(later[t % 512])
        book.learn(t % ARMS, later[t % 512], paid[t % 512], outputs[len(rows) + t % 512])
        return arm

    def seen(arm: int, x: Floats, reward: float, output: Floats) -> Observation:
        return Observation(arm=arm, features=torch.from_numpy(x), reward=reward, output=torch.from_numpy(output)[None])

    def outcome(t: int) -> Observation:
        return seen(t % ARMS, later[t % 512], float(paid[t % 512]), outputs[len(rows) + t % 512])

    sides: dict[str, Round] = {"textbook": refit}
    setting = {**shared, "random_features": None, "label_features": None, "prior_mean": 0.0, "max_samples": 20_000}
    exact = build("dak-ucb", setting, dim=DIM, output_dim=DIM)
    known = tuple(
        replace(
            exact.init(),
            pulls=n,
            design=torch.from_numpy(rows[arm::ARMS].copy()),
            rewards=torch.from_numpy(rewards[arm::ARMS].copy()),
            labels=torch.from_numpy(book.labels[arm].rows[:, None].copy()),
            outputs=n,
            served=torch.from_numpy(np.hstack([rows[arm::ARMS], outputs[: len(rows)][arm::ARMS]])),
        )
        for arm in range(ARMS)
    )
    sides["exact kernel"] = ours(exact, State(known, exact.init_reference()), features=later, outcome=outcome)
    summed = build("dak-ucb", {**shared, "prior_mean": 0.0}, dim=DIM, output_dim=DIM)
    past = (seen(i % ARMS, x, float(rewards[i]), outputs[i]) for i, x in enumerate(rows[:600]))  # its cost is flat in n
    sides["random features (default)"] = ours(summed, learned(summed, past), features=later, outcome=outcome)
    return sides


def frozen(rows: Floats, outputs: Floats) -> Floats:
    """(n,) the label of every row against those before it."""
    pairs = np.tril(textbook.gaussian(rows, rows, 1.0) ** 2 * textbook.gaussian(outputs, outputs, 1.0) ** 2, -1)
    return np.asarray(pairs.sum(1) / np.maximum(np.arange(len(rows)), 1))


def clouds(n: int, dim: int, arms: int) -> tuple[Floats, Floats]:
    """(n, e) samples of arms 0, 1, ... in turn, and (512, e) more; the arms have other means and spreads."""
    rng = np.random.default_rng(13)
    centres, spreads = rng.normal(size=(arms, dim)), np.linspace(0.6, 1.2, arms)
    arm = np.arange(n + 512) % arms
    rows = centres[arm] + spreads[arm][:, None] * rng.normal(size=(n + 512, dim))
    return rows[:n], rows[n:]


def mixture(n: int) -> dict[str, Round]:
    """Mixture-UCB-CAB with n samples in all, RKE, outputs of length 768 as DINOv2's."""
    dim, bandwidth = 768, 40.0
    rows, later = clouds(n, dim, ARMS)
    sides: dict[str, Round] = {}
    solvers: dict[str, textbook.Solver] = {"textbook, SLSQP": textbook.by_slsqp}
    if (cvxpy := environment.borrowed("cvxpy")) is not None:
        solvers = {"textbook, modelling layer": textbook.by_modelling_layer(cvxpy), **solvers}
    for name, solver in solvers.items():
        book = textbook.SolvedMixture.of(
            [rows[arm::ARMS] for arm in range(ARMS)], bandwidth=bandwidth, delta_l=0.6, solver=solver
        )

        def solved(t: int, book: textbook.SolvedMixture = book) -> int:
            arm = book.choose(draw.uniform(f"0/{t}"))
            book.learn(t % ARMS, later[t % 512])
            return arm

        sides[name] = solved

    def outcome(t: int) -> Observation:
        return Observation(arm=t % ARMS, output=torch.from_numpy(later[t % 512])[None])

    shared: dict[str, Any] = {"bandwidth": bandwidth, "initial_pulls": 1}
    for name, setting in (
        ("exact kernel, cab", {"method": "cab", "random_features": None, "max_samples": 20_000}),
        ("2,048 random features, cab", {"method": "cab"}),
        ("2,048 random features, ogd (default)", {}),
    ):
        policy = build("mixture-ucb", {**shared, **setting}, output_dim=dim)
        past = (Observation(arm=arm, output=torch.from_numpy(rows[arm::ARMS].copy())) for arm in range(ARMS))
        sides[name] = ours(policy, learned(policy, past), features=None, outcome=outcome)
    return sides


def weights_alone(n: int) -> dict[str, Round]:
    """The step from kernel sums to weights, for n arms."""
    rng = np.random.default_rng(14)
    vectors = rng.normal(size=(n, 64)) * 0.2 + rng.normal(size=64) * 0.1
    quadratic, linear = vectors @ vectors.T, rng.normal(size=n) * 0.02

    solvers: dict[str, textbook.Solver] = {}
    if (cvxpy := environment.borrowed("cvxpy")) is not None:
        solvers["textbook, modelling layer"] = textbook.by_modelling_layer(cvxpy)
    solvers["textbook, SLSQP"] = textbook.by_slsqp
    known = minimize_quadratic(quadratic, linear).weights
    solvers["active set from the last weights"] = lambda q, c: minimize_quadratic(q, c, start=known).weights

    def step(solver: textbook.Solver) -> Round:
        def play(t: int) -> int:
            weights = solver(quadratic, linear * (1.0 + 0.01 * (t % 16)))
            return int(np.searchsorted(np.cumsum(weights), draw.uniform(f"0/{t}"), side="right"))

        return play

    return {name: step(solver) for name, solver in solvers.items()}


def frechet(dim: int) -> Callable[[int], dict[str, Round]]:
    """FD-UCB with outputs of this length."""

    def at(n: int) -> dict[str, Round]:
        """With n samples per arm; an outcome brings 5."""
        rows, _ = clouds(ARMS * n, dim, ARMS)
        more = clouds(512, dim, ARMS)[0].reshape(-1)[: 500 * dim].reshape(100, 5, dim)
        rng = np.random.default_rng(15)
        mean, scales = rng.normal(size=dim), np.linspace(0.5, 1.5, dim)
        covariance = np.diag(scales) + 0.1 * np.ones((dim, dim))
        running = []
        for arm in range(ARMS):
            own = rows[arm::ARMS]
            running.append(textbook.Running(own.mean(0), np.cov(own.T), len(own)))
        book = textbook.GeneralRoot(running, mean, covariance)
        policy = build("fd-ucb", {}, output_dim=dim)
        state = states.start(policy, arms=ARMS)
        given = Moments(torch.from_numpy(mean), torch.from_numpy(covariance), 50_000)
        state = states.fold(policy, state, Observation(moments=given))
        for arm in range(ARMS):
            state = states.fold(policy, state, Observation(arm=arm, output=torch.from_numpy(rows[arm::ARMS].copy())))
        side = ours(
            policy,
            state,
            features=None,
            outcome=lambda t: Observation(arm=t % ARMS, output=torch.from_numpy(more[t % 100])),
        )

        def rooted(t: int) -> int:
            arm = book.choose()
            book.learn(t % ARMS, more[t % 100])
            return arm

        return {"textbook": rooted, "ours": side}

    return at


def frechet_picks(*, rounds: int = 60, dim: int = 16) -> tuple[int, int]:
    """Both sides of FD-UCB from nothing, each on its own picks: rounds with the same pick, and rounds."""
    later = clouds(rounds * 5 * ARMS, dim, ARMS)[0].reshape(rounds, 5, ARMS, dim)
    mean, covariance = later[:, :, 1].reshape(-1, dim).mean(0), np.eye(dim)
    book = textbook.GeneralRoot([textbook.Running(np.zeros(dim), np.zeros((dim, dim))) for _ in range(ARMS)], mean, covariance)
    policy = build("fd-ucb", {"bonus_scale": 1.0}, output_dim=dim)
    given = Moments(torch.from_numpy(mean), torch.from_numpy(covariance), 50_000)
    state = states.fold(policy, states.start(policy, arms=ARMS), Observation(moments=given))
    same = 0
    for t in range(rounds):
        weights = policy.weights(state, [Context(allowed=(True,) * ARMS)]).values[0]
        mine, theirs = int(weights.argmax()), book.choose()
        same += mine == theirs
        state = states.fold(policy, state, Observation(arm=mine, output=torch.from_numpy(later[t, :, mine].copy())))
        book.learn(theirs, later[t, :, theirs])
    return same, rounds
