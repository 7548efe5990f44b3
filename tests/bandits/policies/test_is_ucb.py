from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandits import state as states
from bandits.errors import InvalidHyperparameter, InvalidObservation
from bandits.policies.is_ucb import IsUcb
from bandits.types import Context, Observation, State
from tools.simulated_tasks.fd_is import SampleWorld, i3, i8, play

ROWS_G2 = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
NOTHING = torch.zeros((0, 3), dtype=torch.float64)


def probabilities(n: int, classes: int, *, seed: int, sharpness: float = 2.0) -> Tensor:
    logits = sharpness * np.random.default_rng(seed).standard_normal((n, classes))
    return torch.softmax(torch.from_numpy(logits), dim=1)


def started(policy: IsUcb, outputs: list[Tensor]) -> State:
    """A state in which arm k has seen outputs[k] in one outcome (nothing, where empty)."""
    state = states.start(policy, arms=len(outputs))
    for arm, rows in enumerate(outputs):
        if len(rows):
            state = states.fold(policy, state, Observation(arm=arm, output=rows))
    return policy.prepare(state)


def free(arms: int, **more: Any) -> Context:
    return Context(allowed=(True,) * arms, **more)


def pick(policy: IsUcb, state: State, **more: Any) -> int:
    return int(policy.weights(state, [free(len(state.arms), **more)]).values[0].argmax())


def reported_arms(policy: IsUcb, state: State) -> list[dict[str, Any]]:
    report = policy.report(state)
    json.dumps(report, allow_nan=False)
    arms: list[dict[str, Any]] = report["arms"]
    return arms


# -- golden numbers --------------------------------------------------------------------------------------------------------


def test_golden_g2_four_outputs() -> None:
    policy = IsUcb(output_dim=3, bonus="released")
    state = started(policy, [ROWS_G2])
    assert (state.arms[0].p / 4).tolist() == pytest.approx([0.4, 0.375, 0.225], abs=1e-9)
    assert state.arms[0].h / 4 == pytest.approx(0.8222666690708822, abs=1e-9)
    (arm,) = reported_arms(policy, state)
    assert arm["log_is"] == arm["estimate"] == pytest.approx(0.24768294083316356, abs=1e-9)
    assert arm["index"] == pytest.approx(4.201014496122614, abs=1e-9)
    assert arm["is"] == pytest.approx(math.exp(0.24768294083316356), abs=1e-9)
    scores = policy.weights(state, [free(1)]).scores
    assert float(scores["estimate"] + scores["bonus"]) == pytest.approx(4.201014496122614, abs=1e-9)


def test_golden_g3_two_thousand_outputs() -> None:
    policy = IsUcb(output_dim=3, bonus="released")
    (arm,) = reported_arms(policy, started(policy, [ROWS_G2.repeat(500, 1)]))
    assert arm["n"] == 2000
    assert arm["index"] == pytest.approx(0.27117959762733723, abs=1e-9)
    assert arm["log_is"] == pytest.approx(0.2476829408331661, abs=1e-9)


@pytest.mark.parametrize(
    ("used", "doubt", "score"),
    [(10, 0.1, 5.799546134795287), (5, 0.1, 3.5937335080384623), (10, 0.5, 1.6666666666666663), (2, 0.01, 1.9705783700664286)],
)
def test_golden_g1_one_output_of_every_class_has_exactly_the_true_score(used: int, doubt: float, score: float) -> None:
    rows = torch.full((used, 10), doubt / 9, dtype=torch.float64)
    rows[range(used), range(used)] = 1.0 - doubt
    policy = IsUcb(output_dim=10)
    assert reported_arms(policy, started(policy, [rows]))[0]["is"] == pytest.approx(score, abs=1e-9)


# -- against independent derivations ---------------------------------------------------------------------------------------


def released_index(p: np.ndarray, *, delta: float, union: bool) -> float:
    """Numpy and plain loops, from the outputs themselves."""
    n, classes = p.shape
    log = math.log(4 * ((classes + 1) if union else 1) / delta)
    h = [-sum(x * math.log(x) for x in row if x > 0) for row in p]
    total = 0.0
    for j in range(classes):
        radius = math.sqrt(2 * p[:, j].var() * log / n) + 7 * log / (3 * (n - 1))
        low, high = p[:, j].mean() - radius, p[:, j].mean() + radius
        moved = min(max(math.exp(-1), low), high)
        total -= moved * math.log(moved)
    return total - float(np.mean(h) - math.sqrt(2 * np.var(h) * log / n) - 7 * math.log(classes) * log / (3 * (n - 1)))


def kl_index(p: np.ndarray, *, delta: float) -> float:
    n, classes = p.shape
    log = math.log(4 / delta)
    mean = p.mean(0)
    h = [-sum(x * math.log(x) for x in row if x > 0) for row in p]
    psi = [sum(x * math.log(x / m) for x, m in zip(row, p[: s + 1].mean(0), strict=True) if x > 0) for s, row in enumerate(p)]
    bias = sum(p[:, j].var() / (2 * n * mean[j]) for j in range(classes) if mean[j] > 0)
    entropy = -sum(m * math.log(m) for m in mean if m > 0)
    width = math.sqrt(2 * np.var(psi) * log / n) + 7 * math.log(classes) * log / (3 * (n - 1))
    return float(entropy + bias - np.mean(h) + width)


@pytest.mark.parametrize("n", [2, 30, 900])
@pytest.mark.parametrize("union", [False, True])
def test_the_released_index_matches_a_plain_rewrite(n: int, union: bool) -> None:
    policy = IsUcb(output_dim=6, delta=0.2, union=union, bonus="released")
    rows = probabilities(n, 6, seed=n)
    index = reported_arms(policy, started(policy, [rows]))[0]["index"]
    assert index == pytest.approx(released_index(rows.numpy(), delta=0.2, union=union), abs=1e-9)


@pytest.mark.parametrize("n", [2, 30, 400])
def test_the_kl_index_matches_a_plain_rewrite(n: int) -> None:
    policy = IsUcb(output_dim=6, delta=0.2, bonus="kl")
    rows = probabilities(n, 6, seed=n)
    rows[:, 4] = 0.0
    rows /= rows.sum(1, keepdim=True)
    index = reported_arms(policy, started(policy, [rows]))[0]["index"]
    assert index == pytest.approx(kl_index(rows.numpy(), delta=0.2), abs=1e-9)


def test_the_kl_bias_is_that_of_the_marginal_entropy() -> None:
    """E H(pbar) + b = H(p) to second order: averaged over many arms, the correction takes away most of the bias."""
    rng = np.random.default_rng(11)
    n, used, classes, doubt = 60, 8, 8, 0.2
    policy = IsUcb(output_dim=classes, bonus="kl")
    rows = np.full((classes, classes), doubt / (classes - 1)) + (1 - doubt - doubt / (classes - 1)) * np.eye(classes)
    plain, corrected = [], []
    for _ in range(150):
        outputs = torch.from_numpy(rows[rng.integers(0, used, n)])
        arm = started(policy, [outputs]).arms[0]
        marginal = outputs.mean(0)
        entropy = -float((marginal * marginal.log()).sum())
        bias = float((outputs.var(0, correction=0) / (2 * n * marginal)).sum())
        assert arm.count == n
        plain.append(entropy - math.log(classes))
        corrected.append(entropy + bias - math.log(classes))
    assert np.mean(plain) < -0.02
    assert abs(np.mean(corrected)) < 0.15 * abs(np.mean(plain))


def test_scoring_leaves_the_running_marginal_alone() -> None:
    """The released code moves it to 1/e in every class."""
    policy = IsUcb(output_dim=3)
    state = started(policy, [NOTHING])
    for _ in range(10):
        state = policy.prepare(states.fold(policy, state, Observation(arm=0, output=ROWS_G2)))
        policy.weights(state, [free(1)])
    assert (state.arms[0].p / 40).tolist() == pytest.approx([0.4, 0.375, 0.225], abs=1e-14)


# -- forced arms, ties, allowed arms ---------------------------------------------------------------------------------------


def test_an_arm_with_one_output_is_forced_and_says_so_without_a_nan() -> None:
    policy = IsUcb(output_dim=3)
    state = started(policy, [ROWS_G2, ROWS_G2[:1]])
    assert pick(policy, state) == 1
    assert reported_arms(policy, state)[1] == {"n": 1, "estimate": None, "log_is": None, "is": None, "bonus": None, "index": None}


def test_every_arm_is_pulled_first_and_a_new_arm_is_tried_first() -> None:
    policy = IsUcb(output_dim=3, initial_pulls=0)
    state = started(policy, [ROWS_G2, ROWS_G2[:1], NOTHING])
    assert pick(policy, state) == 2
    assert pick(policy, state, pending=(0, 0, 1)) == 1
    assert policy.weights(state, [free(3)] * 3).values.argmax(1).tolist() == [2, 1, 2]
    later = started(policy, [ROWS_G2, ROWS_G2])
    assert pick(policy, states.add_arm(policy, later)) == 2
    two = IsUcb(output_dim=3, initial_pulls=2)
    assert two.weights(later, [free(2)] * 3).values.argmax(1).tolist() == [0, 1, 0]


def test_duplicate_arms_share_decisions_that_are_under_way_and_pending_moves_no_index() -> None:
    policy = IsUcb(output_dim=3)
    state = started(policy, [ROWS_G2.repeat(50, 1)[:, [0, 0, 0]] / 1.2, ROWS_G2, ROWS_G2])
    assert pick(policy, state) == 1
    assert policy.weights(state, [free(3)] * 4).values.argmax(1).tolist() == [1, 2, 1, 2]
    assert pick(policy, state, pending=(0, 30, 30)) == 1


def test_forbidden_arms_have_no_weight_and_a_floor_reaches_every_allowed_one() -> None:
    policy = IsUcb(output_dim=3, exploration_floor=0.3)
    state = started(policy, [ROWS_G2.repeat(90, 1), ROWS_G2, NOTHING])
    context = Context(allowed=(True, True, False))
    assert policy.weights(state, [context]).values.tolist() == [[pytest.approx(0.15), pytest.approx(0.85), 0.0]]


@pytest.mark.parametrize("bonus", ["released", "kl"])
def test_constant_and_one_class_outputs_have_a_score_of_one(bonus: Literal["released", "kl"]) -> None:
    policy = IsUcb(output_dim=3, bonus=bonus)
    constant = ROWS_G2[:1].expand(40, 3)
    one_class = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).expand(40, 3)
    for arm in reported_arms(policy, started(policy, [constant, one_class])):
        assert arm["is"] == pytest.approx(1.0, abs=1e-12)
        assert arm["bonus"] > 0.0


def test_one_class_in_all_is_a_bandit_without_a_choice() -> None:
    ones = torch.ones((4, 1), dtype=torch.float64)
    for policy in (IsUcb(output_dim=1), IsUcb(output_dim=1, bonus="kl")):
        state = started(policy, [ones, ones])
        assert [arm["is"] for arm in reported_arms(policy, state)] == [1.0, 1.0]
        assert pick(policy, state) == 0


# -- the statistic ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.sampled_from(["released", "kl"]))
def test_splitting_outcomes_changes_nothing_but_the_number_of_pulls(sizes: list[int], bonus: Literal["released", "kl"]) -> None:
    policy = IsUcb(output_dim=4, bonus=bonus)
    rows = probabilities(sum(sizes), 4, seed=len(sizes))
    state, split = started(policy, [rows]), started(policy, [torch.zeros((0, 4))])
    for part in torch.split(rows, sizes):
        split = states.fold(policy, split, Observation(arm=0, output=part))
    same = states.with_arm(split, 0, replace(split.arms[0], pulls=1))
    assert states.pack(policy, same) == states.pack(policy, state)
    assert reported_arms(policy, split) == reported_arms(policy, state)


def test_the_order_of_outputs_matters_to_kl_and_to_nothing_else() -> None:
    rows = probabilities(50, 4, seed=3)
    for policy, differs in ((IsUcb(output_dim=4, bonus="released"), False), (IsUcb(output_dim=4, bonus="kl"), True)):
        there, back = (reported_arms(policy, started(policy, [r]))[0] for r in (rows, rows.flip(0)))
        assert there["estimate"] == pytest.approx(back["estimate"], abs=1e-13)
        assert (abs(there["index"] - back["index"]) > 1e-6) is differs


@pytest.mark.parametrize("n", [0, 1, 8])
def test_a_packed_state_goes_on_where_it_stopped(n: int) -> None:
    policy = IsUcb(output_dim=4, bonus="kl")
    rows = probabilities(n + 5, 4, seed=n)
    state = started(policy, [rows[:n], rows])
    back = states.unpack(policy, states.pack(policy, state))
    assert states.digest(policy, back) == states.digest(policy, state)
    more = Observation(arm=0, output=rows[n:])
    assert reported_arms(policy, states.fold(policy, back, more)) == reported_arms(policy, states.fold(policy, state, more))


def test_preparing_changes_no_byte_and_scores_only_the_arm_that_changed() -> None:
    policy = IsUcb(output_dim=3)
    state = started(policy, [ROWS_G2, ROWS_G2])
    first = [arm.cache for arm in state.arms]
    state = states.fold(policy, state, Observation(arm=1, output=ROWS_G2))
    before = states.digest(policy, state)
    assert policy.prepare(state).arms[0].cache is first[0]
    assert state.arms[1].cache is not first[1]
    assert states.digest(policy, state) == before
    other = IsUcb(output_dim=3, delta=0.5)
    assert (
        reported_arms(other, state)[0]["bonus"] < reported_arms(policy, state)[0]["bonus"]
    )  # a score is never taken from another policy


def test_outputs_are_scaled_to_sum_one() -> None:
    policy = IsUcb(output_dim=3, bonus="released")
    scaled = ROWS_G2 * torch.tensor([[1.0009], [0.9991], [1.0], [1.0004]], dtype=torch.float64)
    policy.check_observation(Observation(arm=0, output=scaled))
    assert reported_arms(policy, started(policy, [scaled]))[0]["index"] == pytest.approx(4.201014496122614, abs=1e-9)


# -- invariances -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.permutations(range(5)), st.integers(0, 10**6), st.sampled_from(["released", "kl"]))
def test_permuting_arms_or_classes_permutes_the_answer_or_nothing(
    arms: list[int], classes: list[int], seed: int, bonus: Literal["released", "kl"]
) -> None:
    policy = IsUcb(output_dim=5, bonus=bonus, exploration_floor=0.1)
    outputs = [probabilities(6 + k, 5, seed=seed + k, sharpness=1.0 + k) for k in range(4)]
    straight = policy.weights(started(policy, outputs), [free(4)])
    shuffled = policy.weights(started(policy, [outputs[k] for k in arms]), [free(4)])
    assert shuffled.values[0].tolist() == straight.values[0][arms].tolist()
    assert shuffled.scores["bonus"][0].tolist() == straight.scores["bonus"][0][arms].tolist()
    renamed = policy.weights(started(policy, [rows[:, classes] for rows in outputs]), [free(4)])
    for name in ("estimate", "bonus"):
        assert renamed.scores[name][0].tolist() == pytest.approx(straight.scores[name][0].tolist(), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_answer_is_ever_nan(data: st.DataObject) -> None:
    weight = st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0])
    row = st.tuples(weight, weight, weight).filter(lambda r: sum(r) > 1e-6)
    batch = st.lists(row, max_size=5).map(lambda r: torch.tensor(r, dtype=torch.float64).reshape(-1, 3)).map(_normalised)
    policy = IsUcb(output_dim=3, bonus=data.draw(st.sampled_from(["released", "kl"])))
    outputs = [data.draw(batch), data.draw(batch)]
    for rows in outputs:
        if len(rows):
            policy.check_observation(Observation(arm=0, output=rows))
    state = started(policy, outputs)
    values = policy.weights(state, [free(2)]).values
    assert bool(values.isfinite().all())
    assert float(values.sum()) == 1.0
    reported_arms(policy, state)


def _normalised(rows: Tensor) -> Tensor:
    return rows / rows.sum(1, keepdim=True)


# -- what it refuses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.6, 0.5, -0.1], "row 2: a probability is -0.1, below 0"),
        ([0.5, 0.3, 0.1985], "row 2: probabilities sum to 0.9985, not to 1 within 0.001"),
        ([0.5, 0.3, 0.2015], "row 2: probabilities sum to 1.0015"),
        ([0.0, 0.0, 0.0], "row 2: probabilities sum to 0,"),
        ([0.5, 0.5, math.nan], "row 2: probabilities sum to nan"),
    ],
)
def test_outputs_that_are_no_probabilities_are_refused_by_row(row: list[float], message: str) -> None:
    output = torch.cat([ROWS_G2[:2], torch.tensor([row], dtype=torch.float64), ROWS_G2[:1] * 7.0])
    with pytest.raises(InvalidObservation, match=message) as refused:
        IsUcb(output_dim=3).check_observation(Observation(arm=0, output=output))
    assert refused.value.field == "output"


def test_a_union_bound_is_refused_for_kl() -> None:
    with pytest.raises(InvalidHyperparameter, match="union"):
        IsUcb(output_dim=3, bonus="kl", union=True)


@pytest.mark.parametrize(("name", "value"), [("delta", 0.0), ("delta", 1.5), ("bonus", "rigorous"), ("union", 1)])
def test_hyperparameters_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidHyperparameter, match=name):
        IsUcb(output_dim=3, **{name: value})  # type: ignore[arg-type]


# -- worlds of known answer ------------------------------------------------------------------------------------------------


def share(policy: IsUcb, world: SampleWorld, seeds: int) -> float:
    return float(np.mean([world.optimal_pick_ratio(play(policy, world, seed=seed)) for seed in range(seeds)]))


def test_world_i3_is_played_as_well_as_the_golden_run() -> None:
    """Golden I3: .8303 +- .0002 over 20 seeds, so one seed has a deviation of .001 (kl: .967); 3 seeds, 4 standard errors."""
    assert share(IsUcb(output_dim=10, bonus="released"), i3(), 3) == pytest.approx(0.8303, abs=4 * 0.001 / math.sqrt(3))
    assert share(IsUcb(output_dim=10, bonus="kl"), i3(), 2) == pytest.approx(0.967, abs=4 * 0.0015 / math.sqrt(2))


def test_world_i8_with_a_thousand_classes_needs_kl() -> None:
    """Golden I8: is-ucb .338, as good as random; is-ucb-kl .957."""
    assert share(IsUcb(output_dim=1000, bonus="released"), i8(), 1) < 0.36
    assert share(IsUcb(output_dim=1000, bonus="kl"), i8(), 2) > 0.9
