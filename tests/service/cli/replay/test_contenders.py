from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.cli.replay.contenders import Offered, contenders, offered
from service.cli.replay.errors import BadInput
from service.cli.replay.player import Contender

KNOWN = {
    "pak-ucb": Offered(True, frozenset({"exploration", "kernel", "random_features"})),
    "greedy": Offered(False, frozenset({"initial_pulls"})),
    "epsilon-greedy": Offered(False, frozenset({"epsilon", "initial_pulls"})),
}


def parse(*policies: str, settings: Sequence[str] = (), objects: Sequence[str] = ()) -> list[Contender]:
    return contenders(policies, settings=settings, objects=objects, known=KNOWN)


def test_kinds_may_be_repeated_options_or_a_list_with_commas() -> None:
    assert [player.label for player in parse("pak-ucb, greedy", "epsilon-greedy")] == ["pak-ucb", "greedy", "epsilon-greedy"]


def test_a_policy_knows_whether_it_needs_the_prompt() -> None:
    assert [player.contextual for player in parse("pak-ucb,greedy")] == [True, False]


def test_a_policy_that_uses_a_prompt_without_needing_one_is_played_with_it() -> None:
    auto = {"kind": "auto", "needs": ["reward"], "contextual": True, "hyperparameters": ["context"]}
    api = SimpleNamespace(call=lambda method, path: {"policies": [auto]})
    assert offered(cast(Any, api)) == {"auto": Offered(True, frozenset({"context"}))}


def test_own_settings_are_json_or_words_and_make_the_label() -> None:
    (player,) = parse("pak-ucb:exploration=0.1:random_features=null:kernel=linear")
    assert player.policy == {"kind": "pak-ucb", "exploration": 0.1, "random_features": None, "kernel": "linear"}
    assert player.label == "pak-ucb exploration=0.1 random_features=null kernel=linear"


def test_a_shared_setting_goes_to_every_policy_that_has_it_and_an_own_one_wins() -> None:
    first, second, third = parse("greedy:initial_pulls=2,epsilon-greedy,pak-ucb", settings=["initial_pulls=3"])
    assert first.policy == {"kind": "greedy", "initial_pulls": 2}
    assert second.policy == {"kind": "epsilon-greedy", "initial_pulls": 3}
    assert third.policy == {"kind": "pak-ucb"}
    assert [first.label, second.label] == ["greedy initial_pulls=2", "epsilon-greedy"]


def test_an_object_is_sent_as_it_is_except_for_its_label() -> None:
    (player,) = parse(objects=['{"kind": "pak-ucb", "exploration": 0.5, "label": "mine"}'])
    assert player.label == "mine"
    assert player.policy == {"kind": "pak-ucb", "exploration": 0.5}


@pytest.mark.parametrize(
    ("policies", "settings", "objects", "says"),
    [
        (["pak"], [], [], "there is no policy 'pak'; the server has epsilon-greedy, greedy, pak-ucb"),
        (["greedy,greedy"], [], [], "'greedy' is listed twice"),
        (["greedy"], ["exploration=1"], [], "--set exploration: none of the policies has"),
        (["greedy"], ["exploration"], [], "must read name=value"),
        (["pak-ucb:exploration"], [], [], "must read name=value"),
        ([], [], ["{"], "is not JSON"),
        ([], [], ["[1]"], "must be an object with a kind"),
        ([], [], ['{"kind": ["pak-ucb"]}'], "must be an object with a kind"),
        ([], [], ['{"kind": "nothing"}'], "there is no policy 'nothing'"),
    ],
)
def test_what_cannot_be_meant_is_refused(policies: list[str], settings: list[str], objects: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        contenders(policies, settings=settings, objects=objects, known=KNOWN)
