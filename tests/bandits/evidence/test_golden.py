"""Digits of a plain NumPy reference of `auto` (NumPy 2.4.6): 300 rounds of the logistic world, seed 0."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bandits.functional import information_directed
from bandits.policies.auto import AutoShared
from tests.bandits.evidence.runs import Bandit, context, logistic, play, rational_cdf
from tests.bandits.synthetic import sha256

FIRST_PICKS = "012111000000002001001022010000020000120220112222222121212221"
SHA256, COUNTS = "d9c8d16549437426", [82, 96, 122]
BATCHES_OF_50_SHA256, BATCHES_OF_50_COUNTS = "331b68c2b1bffa3d", [94, 90, 116]
MEAN, ROOT, TRUST = 0.8013698630136986, 0.3989689281975534, 0.9999999999999458
NOISE = (0.6268268202186544, 0.8495568557924144)
LEVEL = (0.025978868715163424, 0.030526322262786072)
OWN = ([0.6196179142681238, 0.06519237289200144, 0.05835107663164079], [1 / 18] * 3)
SHARED = (
    [0.04738133953142906, 0.040057722336584195, 0.0417281361592846],
    [0.048447125224665356, 0.07846529097068322, 0.08309634634550747],
)
EVIDENCE = (-110.47535589164059, -140.91609573907962)
MEANS = [0.5947592916343795, 0.4026745306668416, 0.6184642339719315]
DEVIATIONS = [0.11689958566476127, 0.18393445452199264, 0.10996612408823755]
WEIGHTS = [0.039861347058463496, 0.009615120175374628, 0.9505235327661619]

close = partial(assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module", autouse=True)
def _reference_cdf() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(information_directed, "weights", partial(information_directed.weights, cdf=rational_cdf))
        yield


@pytest.fixture(scope="module")
def golden() -> tuple[np.ndarray, Bandit]:
    return play(logistic())


def test_picks(golden: tuple[np.ndarray, Bandit]) -> None:
    picks, bandit = golden
    assert "".join(map(str, picks[:60])) == FIRST_PICKS
    assert sha256(picks)[:16] == SHA256
    assert [arm.pulls for arm in bandit.state.arms] == COUNTS
    assert logistic().rewards[np.arange(300), picks].sum() == 241.0


def test_posterior(golden: tuple[np.ndarray, Bandit]) -> None:
    shared: AutoShared = golden[1].state.reference
    assert (shared.outcomes, shared.next_prepare) == (300, 380)
    assert shared.posterior is not None
    assert shared.posterior.basis.size == 121
    reward = shared.posterior.signals[0]
    close(reward.mean + float(shared.origin[0]), MEAN)
    close(reward.root, ROOT)
    close(reward.trust, TRUST)
    assert [fit.own for fit in reward.fits] == [121, 1]
    for i, fit in enumerate(reward.fits):
        close(fit.scales.noise, NOISE[i])
        close(fit.scales.level, LEVEL[i])
        close(fit.scales.own, OWN[i])
        close(fit.scales.shared, SHARED[i])
        close(fit.evidence, EVIDENCE[i])


def test_decision_at_the_first_prompt(golden: tuple[np.ndarray, Bandit]) -> None:
    policy, state = golden[1].policy, golden[1].state
    found = policy.weights(state, [context(state, logistic().prompts[0])])
    close(found.scores["estimate"][0], MEANS)
    close(found.scores["deviation"][0], DEVIATIONS)
    close(found.values[0], WEIGHTS)


@pytest.mark.parametrize(("factor", "shift"), [(100.0, -1000.0), (0.001, 5.0)])
def test_picks_do_not_depend_on_the_scale_of_rewards(golden: tuple[np.ndarray, Bandit], factor: float, shift: float) -> None:
    world = logistic()
    picks, _ = play(world._replace(rewards=factor * world.rewards + shift))
    assert (picks == golden[0]).all()


def test_outcomes_in_batches() -> None:
    picks, _ = play(logistic(), batch=50)
    assert np.bincount(picks).tolist() == BATCHES_OF_50_COUNTS
    assert sha256(picks)[:16] == BATCHES_OF_50_SHA256
