import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from nextarm import Client

from service.cli.replay.contenders import contenders, offered
from service.cli.replay.errors import BadInput, ServerError
from service.cli.replay.player import RETRIES, STOP, Api, Contender, Plan, bandit_name, connect, order_of, play_all
from service.cli.replay.server import private_server
from service.cli.replay.tables import Table, read_table

BANDIT = Contender(label="scripted", policy={"kind": "pak-ucb", "ridge": 0.5}, contextual=True)
PLAN = Plan(rounds=3, seeds=(4,), embedder="vector", prices=(0.1, 0.2), shuffle=False, prefix="x")


def small_table() -> Table:
    rewards = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.125]])
    return Table(
        name="t",
        arms=("a", "b"),
        prompts=("p", "q", "r"),
        rewards=rewards,
        expected=rewards,
        costs=np.array([[0.01, 0.02]] * 3),
        vectors=np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32),
        has_costs=True,
    )


class Scripted:
    """A stand-in for the service: chooses the given arms, and remembers every request."""

    def __init__(self, arms: list[str | None]) -> None:
        self.arms = iter(arms)
        self.requests: list[tuple[str, str, Any]] = []
        self.failures: list[httpx2.Response | Exception] = []
        self.removal = httpx2.Response(204)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body: Any = json.loads(request.content) if request.content else None
        self.requests.append((request.method, request.url.path, body))
        if self.failures and request.method != "DELETE":
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if request.method == "DELETE":
            return self.removal
        if request.url.path.endswith("/decisions"):
            arm = next(self.arms)
            return httpx2.Response(201, json={"id": body["id"], "arm": arm, "stop": arm is None})
        return httpx2.Response(200, json={})


def play(service: Callable[[httpx2.Request], httpx2.Response], **changes: Any) -> Any:
    with client_of(service) as client:
        return play_all(Api(client), small_table(), [BANDIT], PLAN, **changes)


def client_of(service: Callable[[httpx2.Request], httpx2.Response]) -> Client:
    """It waits for nothing before it asks again."""
    http = httpx2.Client(transport=httpx2.MockTransport(service))
    return Client("http://localhost/", http_client=http, max_retries=RETRIES, backoff_s=0.0)


def test_a_run_creates_asks_answers_and_cleans_up() -> None:
    service = Scripted(["b", "a", "b"])
    rewards: list[float] = []
    (run,) = play(service, each=lambda label, reward: rewards.append(reward))
    assert run.picks.tolist() == [1, 0, 1]
    assert (run.label, run.seed, run.order.tolist()) == ("scripted", 4, [0, 1, 2])
    assert rewards == [0.75, 1.0, 0.125]
    bandit = "/v1/bandits/x-scripted-f4e1a2-4"
    assert service.requests[0] == (
        "PUT",
        bandit,
        {
            "policy": {"kind": "pak-ucb", "ridge": 0.5},
            "arms": [{"name": "a", "price": 0.1}, {"name": "b", "price": 0.2}],
            "seed": 4,
            "prompt": {"embedder": "vector", "dim": 2},
        },
    )
    assert service.requests[1] == ("POST", f"{bandit}/decisions", {"id": "r0", "prompt": {"vector": "AACAPwAAAAA="}})
    assert service.requests[2] == ("PUT", f"{bandit}/decisions/r0/outcome", {"reward": 0.75, "cost": 0.02})
    assert service.requests[-1] == ("DELETE", bandit, None)
    assert len(service.requests) == 8


def test_a_stop_earns_nothing_and_has_no_outcome() -> None:
    service = Scripted(["b", None, "a"])
    (run,) = play(service)
    assert run.picks.tolist() == [1, STOP, 0]
    assert [path for method, path, _ in service.requests if path.endswith("outcome")] == [
        "/v1/bandits/x-scripted-f4e1a2-4/decisions/r0/outcome",
        "/v1/bandits/x-scripted-f4e1a2-4/decisions/r2/outcome",
    ]


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.Response(503, headers={"retry-after": "0"}, json={"code": "storage_unavailable", "title": "no"}),
        httpx2.Response(429, json={"code": "rate_limited", "title": "slow down"}),
        httpx2.ReadError("connection reset"),
    ],
)
def test_a_busy_or_torn_answer_is_asked_for_again_with_the_same_words(failure: httpx2.Response | Exception) -> None:
    service = Scripted(["b", "a", "b"])
    service.failures = [httpx2.Response(200, json={}), failure]  # the second request: the first decision
    (run,) = play(service)
    assert run.picks.tolist() == [1, 0, 1]
    assert service.requests[1] == service.requests[2]


def test_a_refusal_is_one_line_and_the_bandit_is_removed() -> None:
    service = Scripted(["b"])
    problem = {"code": "invalid_request", "detail": "two\nlines", "errors": [{"path": "prompt.vector", "message": "is too long"}]}
    service.failures = [httpx2.Response(200, json={}), httpx2.Response(422, json=problem)]
    with pytest.raises(ServerError) as failure:
        play(service)
    assert failure.value.message == (
        "POST /v1/bandits/x-scripted-f4e1a2-4/decisions answered 422: invalid_request two lines (prompt.vector: is too long)"
    )
    assert failure.value.exit_code == 1
    assert service.requests[-1][0] == "DELETE"


def test_a_bandit_that_cannot_be_removed_is_reported_and_spoils_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    service = Scripted(["b", "a", "b"])
    service.removal = httpx2.Response(503, json={"code": "storage_unavailable", "title": "disk full"})
    (run,) = play(service)
    assert run.picks.tolist() == [1, 0, 1]
    assert "a bandit was left behind: DELETE /v1/bandits/x-scripted-f4e1a2-4 answered 503" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx2.Response(500, text="<html>oops</html>"), "answered 500: <html>oops"),
        (httpx2.Response(404, json=["?"]), "answered 404"),
        (httpx2.Response(200, text="<html>hello</html>"), "is it a nextarm server"),
    ],
)
def test_a_server_of_another_kind_is_one_line(answer: httpx2.Response, says: str) -> None:
    service = Scripted([])
    service.failures = [answer] * (RETRIES + 1)
    with pytest.raises(ServerError, match=says):
        play(service)


def test_a_server_without_a_list_of_policies_is_no_nextarm_server() -> None:
    with (
        client_of(lambda request: httpx2.Response(200, json={"hello": 1})) as client,
        pytest.raises(ServerError, match="is it a nextarm server"),
    ):
        offered(Api(client))


def test_no_server_at_the_url_is_one_line() -> None:
    with (
        connect("http://127.0.0.1:9", private=True) as api,
        pytest.raises(ServerError, match=r"cannot reach http://127\.0\.0\.1:9"),
    ):
        api.call("GET", "/v1/policies")


def test_orders_are_whole_passes_that_differ_by_seed() -> None:
    first, second = (order_of(5, rounds=12, seed=seed, shuffle=True) for seed in (1, 2))
    assert sorted(first[:5]) == sorted(first[5:10]) == [0, 1, 2, 3, 4]
    assert len(first) == 12
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, order_of(5, rounds=12, seed=1, shuffle=True))
    assert order_of(3, rounds=7, seed=1, shuffle=False).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_draw_depends_on_the_label_and_the_seed_and_not_on_who_takes_part_beside() -> None:
    assert bandit_name("replay", "random", 1) == bandit_name("replay", "random", 1)
    names = [bandit_name("p", label, seed) for label in ("random", "Random!", "a" * 90, "a" * 91, "☃") for seed in (0, 1)]
    assert len(set(names)) == 10
    assert all(
        re.fullmatch("[a-z0-9][a-z0-9_-]{0,62}", name) for name in [*names, bandit_name("replay-12345678", "x" * 99, 2**63 - 1)]
    )


# -- against the real service ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_kinds(tmp_path: Path) -> Table:
    """Two kinds of prompt, and a model that is good at each: what there is to learn is plain."""
    path = tmp_path / "t.jsonl"
    rows = [
        {"vector": [1.0, 0.2 * (t % 3)] if t % 2 else [0.2 * (t % 3), 1.0], "rewards": {"a b:c": t % 2, "ü:1": 1 - t % 2}}
        for t in range(80)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_table(path)


def test_the_real_service_learns_over_http_and_a_replay_repeats_itself(api: Api, two_kinds: Table) -> None:
    players = contenders(["pak-ucb:exploration=0.3", "random"], settings=["random_features=32"], objects=(), known=offered(api))
    plan = Plan(rounds=80, seeds=(0, 1), embedder="vector", prices=(0.0, 0.0))
    runs = play_all(api, two_kinds, players, plan)
    earned = {run.label: float(np.mean(two_kinds.rewards[run.order, run.picks][20:])) for run in runs if run.seed == 1}
    assert earned["pak-ucb exploration=0.3"] > 0.95
    assert 0.2 < earned["random"] < 0.8
    again = play_all(api, two_kinds, players, plan)
    for one, other in zip(runs, again, strict=True):
        np.testing.assert_array_equal(one.picks, other.picks)
    played = {bandit_name(plan.prefix, player.label, seed) for player in players for seed in plan.seeds}
    left = {bandit["name"] for bandit in api.call("GET", "/v1/bandits")["bandits"]}
    assert not played & left, "what was played is removed; the service is shared with other tests"


def test_a_store_that_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(ServerError, match=r"ended at once \(exit code 2\): .*NEXTARM_STORE"), private_server(store="nowhere://"):
        pass


def test_the_private_server_is_gone_afterwards() -> None:
    with private_server() as url:
        assert httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/healthz", trust_env=False)


def test_an_unknown_policy_or_setting_is_reported_before_anything_is_played(api: Api) -> None:
    known = offered(api)
    with pytest.raises(BadInput, match=r"no policy 'pak'; the server has .*pak-ucb"):
        contenders(["pak"], settings=(), objects=(), known=known)
