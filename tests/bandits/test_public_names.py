"""The public names of `bandits`: all of them resolve, documented, and importing the package loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bandits

EXPORTED = {
    "the protocol": "REFERENCE Context Moments Observation Policy State Weights",
    "the registry": "POLICIES build",
    "modules": "draw state",
    "simulation": "EpisodeTrace Trace World play_episodes simulate",
    "errors": "BanditError CorruptState FieldError InvalidContext InvalidHyperparameter InvalidObservation NotPositiveDefinite "
    "ReferenceMissing",
    "diversity scores": "conditional_rke conditional_vendi feature_spectrum gram_spectrum information_vendi inverse_joint_rke "
    "joint_kernel_distance joint_rke kernel_distance label_error rke truncate_spectrum vendi",
}


def test_the_public_names_are_these() -> None:
    assert sorted(bandits.__all__) == sorted(name for names in EXPORTED.values() for name in names.split())
    assert set(bandits.__all__) <= set(dir(bandits))


@pytest.mark.parametrize("name", bandits.__all__)
def test_a_public_name_resolves_and_says_what_it_is(name: str) -> None:
    found = getattr(bandits, name)
    assert name in ("POLICIES", "REFERENCE") or found.__doc__


def test_type_checkers_see_what_is_imported_on_first_use() -> None:
    tree = ast.parse(Path(str(bandits.__file__)).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(homes) == set(bandits.__all__)
    assert {name: home for name, home in homes.items() if home != "bandits"} == bandits._HOME_OF


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bandits.nothing


def test_importing_the_package_does_not_import_torch() -> None:
    program = "import sys, bandits, bandits.errors; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_a_round_can_be_played_with_the_public_names_alone() -> None:
    policy = bandits.build("pak-ucb", {}, dim=3)
    state = bandits.state.start(policy, arms=2)
    x = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    context = bandits.Context(features=x, allowed=(True, True))
    arm = bandits.draw.draw(policy.weights(state, [context]).values[0], key="decision 1").arm
    state = bandits.state.fold(policy, state, bandits.Observation(arm=arm, features=x, reward=1.0))
    assert state.arms[arm].pulls == 1
