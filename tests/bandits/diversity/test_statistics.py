"""The statistic of DAK-UCB: labels that look back, their regression, references, pending decisions, replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bandits import state as states
from bandits.errors import InvalidObservation
from bandits.policies.dak_ucb import DakUcb
from bandits.regression.ridge import BLOCK
from bandits.types import Context, Moments, Observation, State
from tests.bandits.golden import FORMS, SIGMA, WORLD, World, dak, kernel, outcome, play, post, serve, unit

# -- labels and their regression ------------------------------------------------------------


def label_by_hand(world: World, t: int, arm: int, past: Sequence[tuple[int, int]], *, kind: str) -> float:
    """psi of round t against rounds (round, arm) of one history."""
    x, o, y = world.x.numpy(), world.outputs.numpy(), world.references.numpy()
    total = 0.0
    for j, who in past:
        kt, kx = kernel(x[t], x[j], 0.6), kernel(o[t, arm], o[j, who], 0.9)
        if kind == "rke":
            total += kt**2 * kx**2
        else:
            total += kt * (kx + kernel(y[t], y[j], 0.9) - kernel(o[t, arm], y[j], 0.9) - kernel(y[t], o[j, who], 0.9))
    return total / len(past) if past else 0.0


@pytest.mark.parametrize("kind", ["rke", "jkd"])
@pytest.mark.parametrize("mixture", [False, True])
def test_labels_look_back_and_stay_as_they_were_made(kind: str, mixture: bool) -> None:
    policy = dak(diversity=kind, mixture=mixture, prompt_bandwidth=0.6, output_bandwidth=0.9)
    played = [0, 0, 2, 1, 2, 0, 2, 2, 1, 0]
    state = serve(policy, WORLD, played)
    for arm in range(3):
        rounds = [t for t, who in enumerate(played) if who == arm]
        expected = [
            [
                label_by_hand(WORLD, t, arm, [(j, h) for j, h in enumerate(played[:t]) if h == other], kind=kind)
                for other in (range(3) if mixture else [arm])
            ]
            for t in rounds
        ]
        np.testing.assert_allclose(state.arms[arm].labels.numpy(), expected, atol=1e-14)


def test_the_first_label_of_every_arm_is_zero() -> None:
    for form in FORMS.values():
        for kind in ("rke", "jkd"):
            policy = dak(mixture=True, diversity=kind, **{"label_features": 32, "random_features": 8, **form})
            state = serve(policy, WORLD, [1])
            assert not state.arms[1].labels.any()


@pytest.mark.parametrize("form", FORMS)
def test_where_prompts_are_scaled_only_their_direction_counts(form: str) -> None:
    policy = dak(normalize=True, **{"label_features": 32, "random_features": 8, **FORMS[form]})
    state, stretched = serve(policy, WORLD, [0, 0, 0, 0, 0]), states.start(policy, arms=3)
    for t in range(5):
        stretched = states.fold(policy, stretched, replace(outcome(WORLD, t, 0), features=(t + 0.5) * WORLD.x[t]))
    torch.testing.assert_close(stretched.arms[0].labels, state.arms[0].labels, rtol=0.0, atol=1e-12)


def test_an_exact_regression_forgets_labels_with_their_prompts() -> None:
    """With labels by random features, which forget nothing, beside an exact prompt kernel that keeps eight observations."""
    policy, unbounded = (dak(mixture=True, label_features=64, max_samples=n) for n in (8, 100))
    played = [0, 0, 2, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0]
    short, full = serve(policy, WORLD, played).arms[0], serve(unbounded, WORLD, played).arms[0]
    kept = len(short.rewards)
    assert 6 <= kept <= 8
    assert torch.equal(short.labels, full.labels[-kept:])
    assert torch.equal(short.design, full.design[-kept:])


@pytest.mark.parametrize("form", FORMS)
def test_expected_labels_are_the_ridge_regression_of_the_labels(form: str) -> None:
    settings: dict[str, Any] = {"label_features": 64, "random_features": 16, **FORMS[form]}
    policy = dak(mixture=True, ridge=0.3, **settings)
    labels: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}
    played = [0, 1, 2, 2, 0, 2, 1, 0, 2, 2, 0, 1]
    state = states.start(policy, arms=3)
    for t, arm in enumerate(played):
        before = state
        state = states.fold(policy, before, outcome(WORLD, t, arm))
        rows = policy.history.rows(WORLD.x[t], WORLD.outputs[t, arm][None], torch.zeros((0, 4)))
        labels[arm].append(policy.history.update(before.arms[arm], rows, against=before.arms)[0].numpy())
    query = WORLD.x[20:23]
    z = policy.feature_map(query)
    found = torch.stack([arm.expected(z, using=policy.regression, columns=3) for arm in state.arms], dim=1)
    for arm in range(3):
        z = policy.feature_map(WORLD.x[[t for t, who in enumerate(played) if who == arm]])
        lifted = policy.feature_map(query)
        gram, cross = (policy.k(z, z), policy.k(lifted, z)) if policy.random_features is None else (z @ z.T, lifted @ z.T)
        expected = cross.numpy() @ np.linalg.solve(gram.numpy() + 0.3 * np.eye(len(z)), np.array(labels[arm]))
        np.testing.assert_allclose(found[:, arm].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("label_features", [None, 64])
def test_labels_solved_outcome_by_outcome_are_those_solved_afresh(label_features: int | None) -> None:
    """Prepared after each outcome, with decisions pending in between, past forgetting, and with an arm that came later."""
    policy = dak(mixture=True, ridge=0.3, max_samples=9, label_features=label_features)
    state, waiting, query = states.start(policy, arms=3), list[tuple[int, int]](), WORLD.x[60:63]
    for t in range(40):
        arm = (0, 1, 0, 2)[t % 4]
        state = states.with_arm(state, arm, policy.add_pending(state.arms[arm], WORLD.x[t]))
        waiting.append((t, arm))
        if t % 5 != 1:
            when, which = waiting.pop(t % len(waiting))
            state = states.fold(policy, state, outcome(WORLD, when, which, was_pending=True))
        if t == 17:
            state = states.add_arm(policy, state)
        state = policy.prepare(state)
        policy.weights(state, [Context(features=WORLD.x[t], allowed=(True,) * len(state.arms))])
        for kept in state.arms:
            fresh = replace(kept, regression=None, coefficients=None, rows=None)
            found, expected = (a.expected(query, using=policy.regression, columns=len(state.arms)) for a in (kept, fresh))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert state.arms[0].pulls > 9, "it forgot, and went on"


def test_the_objective_is_the_sum_of_its_parts() -> None:
    policy = dak(diversity_weight=0.7, exploration=0.4, diversity_exploration=1.6)
    state = serve(policy, WORLD, [0, 1, 2] * 5)
    contexts = [Context(features=x, allowed=(True,) * 3) for x in WORLD.x[50:54]]
    answer = policy.weights(state, contexts)
    s = answer.scores
    torch.testing.assert_close(s["diversity_bonus"], s["bonus"] * (1.6 / 0.4), rtol=1e-14, atol=0.0)  # one width
    parts = s["estimate"] + s["bonus"] + 0.7 * (s["diversity_bonus"] - s["diversity_estimate"])
    torch.testing.assert_close(s["objective"], parts, rtol=0.0, atol=1e-15)
    assert answer.values.argmax(1).tolist() == s["objective"].argmax(1).tolist()
    charged = s["diversity_estimate"].mean(0)
    assert float(charged[:2].min()) > 3 * float(charged[2])  # the collapsed arms


def test_a_batch_of_outputs_is_labelled_by_its_mean_and_served_one_by_one() -> None:
    for form in ({}, {"label_features": 64}):
        policy = dak(**form)
        state = serve(policy, WORLD, [2, 2, 2, 2])
        several = Observation(arm=2, features=WORLD.x[9], reward=0.5, output=WORLD.outputs[9])
        each = [states.fold(policy, state, Observation(arm=2, features=WORLD.x[9], output=o[None])) for o in WORLD.outputs[9]]
        together = states.fold(policy, state, several)
        single = np.mean([arm.arms[2].labels[-1, 0] for arm in each])
        assert float(together.arms[2].labels[-1, 0]) == pytest.approx(single, abs=1e-15)
        assert (together.arms[2].pulls, together.arms[2].outputs) == (5, 7)
        assert policy.report(together)["arms"][2]["outputs"] == 7


# -- references ------------------------------------------------------------


def test_posted_pairs_of_the_same_prompts_stand_for_references_in_the_outcomes() -> None:
    for form in ({}, {"label_features": 128}):
        policy = dak(diversity="jkd", mixture=True, normalize=True, **form)
        sent = serve(policy, WORLD, [0, 1, 2, 2, 1, 0, 2])
        lengths = torch.linspace(0.2, 5.0, 40, dtype=torch.float64)[:, None]  # only directions count here
        posted = post(policy, states.start(policy, arms=3), lengths * WORLD.x[:40], WORLD.references[:40])
        for t, arm in enumerate([0, 1, 2, 2, 1, 0, 2]):
            posted = states.fold(policy, posted, outcome(WORLD, t, arm, reference=False))
        for ours, theirs in zip(posted.arms, sent.arms, strict=True):
            torch.testing.assert_close(ours.labels, theirs.labels, rtol=0.0, atol=1e-14)


def test_the_reference_of_an_outcome_comes_before_posted_pairs() -> None:
    policy = dak(diversity="jkd")
    with_pairs = post(policy, states.start(policy, arms=3), WORLD.x[50:60], WORLD.references[50:60])
    sent = serve(policy, WORLD, [0, 0, 0, 0])
    assert torch.equal(serve(policy, WORLD, [0, 0, 0, 0], state=with_pairs).arms[0].labels, sent.arms[0].labels)


def test_of_equally_near_pairs_the_first_posted_counts() -> None:
    policy = dak(diversity="jkd")
    x = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    state = post(policy, states.start(policy, arms=1), x, torch.arange(12, dtype=torch.float64).reshape(3, 4))
    nearest = state.reference.nearest(torch.tensor([0.1, 0.8, 0, 0], dtype=torch.float64))
    assert nearest.tolist() == [[4.0, 5.0, 6.0, 7.0]]


def test_an_arm_that_answers_like_the_references_is_not_charged_for_the_prompts_it_was_not_asked() -> None:
    """The reason for the nearest pair: against the whole reference sample, this perfect arm would have a distance."""
    policy = dak(diversity="jkd")
    g = np.random.default_rng(8)
    prompts = unit(np.repeat(np.eye(4)[:2], 30, axis=0) + 0.02 * g.standard_normal((60, 4)))  # 30 dogs, 30 cats
    outputs = unit(np.repeat(np.eye(4)[2:], 30, axis=0) + 0.02 * g.standard_normal((60, 4)))
    x, o = torch.from_numpy(prompts), torch.from_numpy(outputs)
    state = post(policy, states.start(policy, arms=1), x[::2], o[::2])
    for t in range(1, 30, 2):  # dogs alone; other photographs of them than the references
        state = states.fold(policy, state, Observation(arm=0, features=x[t], reward=1.0, output=o[t][None]))
    labels = state.arms[0].labels[5:, 0]
    assert float(labels.abs().max()) < 0.01

    def joint(i: int, j: int) -> float:
        return kernel(prompts[i], prompts[j], SIGMA) * kernel(outputs[i], outputs[j], SIGMA)

    dogs, sample = range(1, 30, 2), range(0, 60, 2)
    whole = (
        np.mean([joint(i, j) for i in dogs for j in dogs])
        + np.mean([joint(i, j) for i in sample for j in sample])
        - 2 * np.mean([joint(i, j) for i in dogs for j in sample])
    )
    assert whole > 0.4


@pytest.mark.parametrize("form", FORMS)
def test_an_arm_whose_outputs_are_the_references_is_charged_nothing(form: str) -> None:
    policy = dak(diversity="jkd", **{"label_features": 32, "random_features": 8, **FORMS[form]})
    state = states.start(policy, arms=2)
    for t in range(12):
        same = WORLD.references[t][None]
        state = states.fold(policy, state, Observation(arm=t % 2, features=WORLD.x[t], output=same, reference=same))
    answer = policy.weights(state, [Context(features=WORLD.x[30], allowed=(True, True))])
    assert answer.scores["diversity_estimate"].tolist() == [[0.0, 0.0]]
    assert policy.report(state)["pooled"]["joint_kernel_distance"] == pytest.approx(0.0, abs=1e-15)


def test_what_cannot_be_compared_is_refused_before_it_is_learned() -> None:
    policy = dak(diversity="jkd")
    state = states.start(policy, arms=3)
    alone = outcome(WORLD, 0, 1, reference=False)
    for check in (
        lambda: policy.check_observation(alone),
        lambda: policy.check_observation(alone, state=state),
        lambda: policy.update(state, alone),
    ):
        with pytest.raises(InvalidObservation, match=r"reference.*post reference pairs"):
            check()
    policy.check_observation(outcome(WORLD, 0, 1))
    policy.check_observation(alone, state=post(policy, state, WORLD.x[:1], WORLD.references[:1]))
    with pytest.raises(InvalidObservation, match="one per output"):
        policy.check_observation(Observation(arm=0, features=WORLD.x[0], output=WORLD.outputs[0], reference=WORLD.references[:2]))
    policy.check_observation(Observation(arm=0, features=WORLD.x[0], output=WORLD.outputs[0], reference=WORLD.references[:3]))
    with pytest.raises(InvalidObservation, match="output"):
        dak().check_observation(Observation(arm=0, features=WORLD.x[0]))
    dak().check_observation(alone)


def test_reference_pairs_are_checked() -> None:
    policy = dak(diversity="jkd", normalize=True, max_samples=6)
    state = states.start(policy, arms=2)
    x, y = WORLD.x, WORLD.references
    wrong = {
        "pairs": Observation(features=x[:2], output=y[:3]),
        "one prompt": Observation(features=torch.zeros(0, dtype=torch.float64), output=y[:3]),
        "pairs: send": Observation(moments=Moments(y[0], torch.eye(4, dtype=torch.float64), 9)),
        "4 numbers": Observation(features=x[:2, :3], output=y[:2]),
        "zeros": Observation(features=torch.zeros((2, 4), dtype=torch.float64), output=y[:2]),
        "at most 6": Observation(features=x[:7], output=y[:7]),
    }
    for message, seen in wrong.items():
        with pytest.raises(InvalidObservation, match=message):
            policy.check_reference(state, seen)
    full = post(policy, state, x[:6], y[:6])
    assert policy.report(full)["reference_pairs"] == 6
    with pytest.raises(InvalidObservation, match="at most 6"):
        policy.check_reference(full, Observation(features=x[:1], output=y[:1]))
    over = states.fold(policy, full, Observation(features=x[6:8], output=y[6:8]))  # two posts that raced past the check
    assert torch.equal(over.reference.outputs, y[2:8])
    with pytest.raises(InvalidObservation, match="jkd"):
        dak().check_reference(states.start(dak(), arms=1), Observation(features=x[:1], output=y[:1]))


# -- states ------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hyperparameters", [{}, {"mixture": True}, {"diversity": "jkd", "normalise_labels": True}])
def test_a_packed_state_plays_on_as_if_nothing_had_happened(form: str, hyperparameters: dict[str, Any]) -> None:
    policy = dak(**{"label_features": 64, "random_features": 16, "max_samples": 12, **FORMS[form]}, **hyperparameters)
    state = serve(policy, WORLD, [0, 1, 2, 2, 1, 2, 0] * 5)
    if policy.diversity == "jkd":
        state = post(policy, state, WORLD.x[:5], WORLD.references[:5])
    restored = states.unpack(policy, states.pack(policy, state))
    assert states.digest(policy, restored) == states.digest(policy, state)
    live, end = play(policy, WORLD, rounds=30, state=state)
    again, end_again = play(policy, WORLD, rounds=30, state=restored)
    assert live.tolist() == again.tolist()
    assert states.digest(policy, end) == states.digest(policy, end_again)


@pytest.mark.parametrize("form", FORMS)
def test_splitting_the_contexts_of_a_call_or_leaving_out_prepare_changes_nothing(form: str) -> None:
    for mixture in (False, True):
        policy = dak(mixture=mixture, **{"label_features": 64, "random_features": 16, **FORMS[form]})
        picks, state = play(policy, WORLD, rounds=20)
        assert play(policy, WORLD, rounds=20, prepare=False)[0].tolist() == picks.tolist()
        contexts = [Context(features=x, allowed=(True,) * 3) for x in WORLD.x[70:77]]
        together = policy.weights(state, contexts).values
        single = torch.cat([policy.weights(state, [context]).values for context in contexts])
        torch.testing.assert_close(together, single, rtol=0.0, atol=1e-9)


def test_learning_never_writes_into_the_state_it_was_given() -> None:
    for form in FORMS.values():
        policy = dak(mixture=True, **{"label_features": 32, "random_features": 8, "max_samples": 8, **form})
        state = serve(policy, WORLD, [0, 1, 2, 2, 2])
        before = states.digest(policy, state)
        for t in range(20, 40):
            states.fold(policy, state, outcome(WORLD, t, 2))  # twenty branches of one state
            policy.add_pending(state.arms[2], WORLD.x[t])
        assert states.digest(policy, state) == before


@pytest.mark.parametrize("form", FORMS)
def test_pending_decisions_shrink_the_shared_width_and_released_ones_widen_it_again(form: str) -> None:
    policy = dak(**{"label_features": 32, "random_features": 16, **FORMS[form]})
    state = policy.prepare(serve(policy, WORLD, [0, 1, 2, 0, 1, 2]))
    x, context = WORLD.x[30], [Context(features=WORLD.x[31], allowed=(True,) * 3)]

    def scores(state: State) -> dict[str, float]:
        return {name: float(value[0, 1]) for name, value in policy.weights(state, context).scores.items()}

    before, digest = scores(state), states.digest(policy, state)
    waiting = states.with_arm(state, 1, policy.add_pending(state.arms[1], x))
    during = scores(waiting)
    assert states.digest(policy, waiting) == digest
    assert during["bonus"] < 0.95 * before["bonus"]
    assert during["diversity_bonus"] == during["bonus"]  # both multipliers are 1
    assert (during["estimate"], during["diversity_estimate"]) == (before["estimate"], before["diversity_estimate"])
    released = scores(states.with_arm(waiting, 1, policy.remove_pending(waiting.arms[1], x)))
    assert released == pytest.approx(before, abs=1e-12)
    with_pending = states.fold(
        policy, waiting, Observation(arm=1, features=x, reward=0.2, output=WORLD.outputs[0, :1], was_pending=True)
    )
    without_pending = states.fold(policy, state, Observation(arm=1, features=x, reward=0.2, output=WORLD.outputs[0, :1]))
    assert scores(with_pending) == pytest.approx(scores(without_pending), abs=1e-12)


def test_the_memory_of_an_arm_does_not_depend_on_the_rounds() -> None:
    """By default constant from the start but for the rows of an open block; in the exact forms bounded by max_samples."""
    default = DakUcb(dim=4, output_dim=4, output_bandwidth=0.8, label_features=64, random_features=8)
    assert DakUcb.__dataclass_fields__["label_features"].default is not None
    assert DakUcb.__dataclass_fields__["random_features"].default is not None
    exact = dak(max_samples=16)
    for policy, low in ((default, 12), (exact, 40)):
        sizes = set()
        state = serve(policy, WORLD, [0, 1, 2] * 4)
        for t in range(12, 120):
            state = states.fold(policy, state, outcome(WORLD, t, t % 3))
            if t >= low:
                sizes.add(len(states.pack(policy, state)))
        if policy is default:
            assert max(sizes) - min(sizes) < 3 * BLOCK * 16 * 8, "three arms, 16 features of 8 bytes"
            assert all(len(arm.held) < BLOCK for arm in state.arms)
        else:
            assert max(sizes) < 1.6 * min(sizes)
            assert all(12 <= len(arm.served) <= 16 for arm in state.arms)
