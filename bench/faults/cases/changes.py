"""kill -9 while shadows are promoted and outcomes amended: each is in the log once, and every replica has learned it once.

    clients    decide, post outcomes whole or in two parts, amend their own and each other's
    promoters  look at a shadow, promote it, and repeat that
    killer     ends a random replica again and again

What is cut off, or refused with a 503, is sent again with the same id and body until it is answered. So in the end the log must
hold what was acknowledged, no more and no less.
"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Any

from bench.faults.replicas import Digests, Judged, Replicas, digests, replayed
from bench.faults.rows import Options, Row
from bench.faults.server import Server
from tools.processes import EVERYSEC, Answer, RedisServer, ServerFailed, ask

BANDIT = "changing"
BODY: dict[str, Any] = {
    "policy": {"kind": "pak-ucb", "random_features": 16},
    "arms": [{"name": name, "price": price} for name, price in (("small", 0.25), ("medium", 1.0), ("large", 4.0))],
    "prompt": {"dim": 4},
    "objective": {"reward": 1.0, "cost": -0.1, "thumb": 0.25},
    "seed": 8,
}
SHADOWS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "lin-ucb"},
    "chance": {"kind": "epsilon-greedy", "epsilon": 0.3},
}
CLIENTS, PROMOTERS = 6, 2
PATIENCE_S = 120.0
KINDS = ("decided", "partial", "observed", "amended", "shadow_promoted")

Key = tuple[str, str]
"""kind of event, and what names one of that kind: the client's id."""


def run(options: Options) -> list[Row]:
    """One process over SQLite, then two replicas over Redis."""
    return [sqlite(options), redis(options)]


def sqlite(options: Options) -> Row:
    """One process."""
    with Replicas(options.space("changes-sqlite"), "", number=1) as one:
        return _play(options, one, "kill -9 during promotions and amendments, SQLite")


def redis(options: Options) -> Row:
    """Two replicas; clients go on with the other one."""
    folder = options.space("changes-redis")
    with RedisServer(*EVERYSEC, folder=folder / "redis") as store, Replicas(folder, store.url, number=2) as two:
        return _play(options, two, "kill -9 during promotions and amendments, 2 replicas, Redis")


def _play(options: Options, replicas: Replicas, fault: str) -> Row:
    kills = options.kills or (6 if options.quick else 30)
    g, began, starts = Random(options.seed), time.monotonic(), list[float]()
    replicas.start({BANDIT: BODY})
    for name, policy in SHADOWS.items():
        created = replicas.servers[0].ask("PUT", f"/v1/bandits/{BANDIT}/shadows/{name}", {"policy": policy})
        if created.status != 201:
            raise ServerFailed(f"shadow {name}: {created}")
    closed: deque[str] = deque(maxlen=50)
    count = options.clients or CLIENTS
    workers: list[_Worker] = [_Client(replicas.servers, closed, number=i, seed=options.seed) for i in range(count)]
    workers += [_Promoter(replicas.servers, number=count + i, seed=options.seed) for i in range(PROMOTERS)]
    for worker in workers:
        worker.start()
    try:
        while len(starts) < kills and time.monotonic() - began < options.limit_s:
            time.sleep(g.uniform(0.5, 2.5))
            victim = g.choice(replicas.servers)
            victim.kill()
            victim.start()
            starts.append(victim.wait_until_ready())
            options.tell(len(starts), kills)
        time.sleep(0.5)
    finally:
        for worker in workers:
            worker.over.set()
    for worker in workers:
        worker.join(PATIENCE_S)
        if worker.is_alive():
            worker.broken.append(f"worker {worker.number} hangs")
    replicas.wait_until_ready()
    return _judged(fault, replicas, workers, starts)


# -- who asks ----------------------------------------------------------------------------------------------------------------


class _Worker(threading.Thread):
    """Asks, and writes down what was acknowledged.

    acknowledged: what the log must hold, by key, in the form of `logged`.  counts: among others `cut off KIND`, requests whose
    connection was cut, and `found KIND`, those of them that had been accepted, as their repetition showed.
    """

    def __init__(self, servers: Sequence[Server], *, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.over = threading.Event()
        self.acknowledged: dict[Key, dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.made = 0
        self.g = Random(f"{seed}/{number}")
        self._servers = servers
        self._connection = servers[number % len(servers)].connect()

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.made += 1
                self.take_turn(f"{self.number}-{self.made}")
        except ServerFailed as error:
            self.broken.append(str(error))
        self._connection.close()

    def take_turn(self, name: str) -> None:
        """Some requests, one after the other. name: of what is made in this turn."""
        raise NotImplementedError

    def ask(self, kind: str, method: str, path: str, body: Any = None) -> Answer:
        """The first answer that is neither a cut connection nor a 503; the same request is sent until then, to any replica."""
        deadline, was_cut = time.monotonic() + PATIENCE_S, False
        while time.monotonic() < deadline:
            try:
                answer = ask(self._connection, method, f"/v1/bandits/{BANDIT}/{path}", body)
                if answer.status != 503:
                    self.counts[f"found {kind}"] += was_cut and bool(answer.body.get("duplicate"))
                    return answer
                self.counts["refused"] += 1
            except ConnectionRefusedError:  # it is down, and has seen nothing
                pass
            except (OSError, http.client.HTTPException):
                self.counts[f"cut off {kind}"] += 1
                was_cut = True
            self._connection.close()
            self._connection = self.g.choice(self._servers).connect()
            time.sleep(0.03)
        raise ServerFailed(f"{method} {path} {body} was never answered")

    def expect(self, kind: str, method: str, path: str, body: Any, *, statuses: Sequence[int] = (200,)) -> Answer:
        """The same; another status is a broken promise."""
        answer = self.ask(kind, method, path, body)
        if answer.status not in statuses:
            self.broken.append(f"{method} {path} {body}: {answer.status} {answer.body.get('code')}")
        return answer

    def repeat(self, kind: str, method: str, path: str, body: Any, first: Answer) -> None:
        """The same request again, which must be answered alike."""
        again = self.expect(kind, method, path, body)
        if again.status == 200 and (again.body["offset"], again.body["duplicate"]) != (first.body["offset"], True):
            self.broken.append(f"{method} {path} {body}: first {first.body}, repeated {again.body}")
        self.counts[f"repeated {kind}"] += 1


class _Client(_Worker):
    """Decides, posts outcomes, and amends. closed: decisions of all clients that can be amended."""

    def __init__(self, servers: Sequence[Server], closed: deque[str], *, number: int, seed: int) -> None:
        super().__init__(servers, number=number, seed=seed)
        self._closed = closed

    def take_turn(self, name: str) -> None:
        prompt = {"vector": [round(self.g.gauss(0.0, 1.0), 3) for _ in range(4)]}
        decided = self.expect("decided", "POST", "decisions", {"id": name, "prompt": prompt}, statuses=(200, 201))
        if decided.status not in (200, 201):
            return
        self.acknowledged["decided", name] = {"offset": decided.body["offset"], "arm": decided.body["arm"]}
        if self.g.random() < 0.1:  # stays open
            return
        path = f"decisions/{name}/outcome"
        if self.g.random() < 0.5:
            part = {"cost": round(self.g.random(), 3), "signals": {"thumb": self.g.choice((0.0, 1.0))}}
            if (answer := self.expect("partial", "PUT", path, part)).status == 200:
                self.acknowledged["partial", name] = {"offset": answer.body["offset"], **part}
        reward = round(self.g.random(), 3)
        if (answer := self.expect("observed", "PUT", path, {"reward": reward})).status == 200:
            self.acknowledged["observed", name] = {"offset": answer.body["offset"], "reward": reward}
            self._closed.append(name)
        for n in range(self.g.choice((0, 1, 1, 2))):
            self._amend(self.g.choice(tuple(self._closed)), f"{name}-{n}")

    def _amend(self, decision: str, amendment: str) -> None:
        values: dict[str, Any] = {"reward": round(self.g.random(), 3)}
        if self.g.random() < 0.5:
            values |= {"cost": round(self.g.random(), 3), "signals": {"thumb": round(self.g.random(), 3)}}
        path, body = f"decisions/{decision}/outcome", {**values, "id": amendment}
        first = self.expect("amended", "PATCH", path, body)
        if first.status != 200:
            return
        known = {name: first.body[name] for name in ("offset", "reward", "cost", "signals")}
        if any(known[name] != value for name, value in values.items()):
            self.broken.append(f"amendment {amendment}: asked for {values}, answered {known}")
        self.acknowledged["amended", f"{decision}/{amendment}"] = known
        if self.g.random() < 0.3:
            self.repeat("amended", "PATCH", path, body, first)
        if self.g.random() < 0.1:
            self.expect("amended", "PATCH", path, {**body, "reward": 2.0}, statuses=(409,))


class _Promoter(_Worker):
    """Promotes either shadow, as it has just seen it; where another one was quicker, that is a 409 and must leave nothing."""

    def take_turn(self, name: str) -> None:
        shadow = self.g.choice(tuple(SHADOWS))
        seen = self.expect("shadow", "GET", f"shadows/{shadow}", None)
        if seen.status != 200:
            return
        path, body = f"shadows/{shadow}/promote", {"id": f"p-{name}", "shadow_offset": seen.body["offset"]}
        first = self.expect("shadow_promoted", "POST", path, body, statuses=(200, 409))
        if first.status == 200:
            content = {"offset": first.body["offset"], "shadow": shadow, "shadow_offset": seen.body["offset"]}
            self.acknowledged["shadow_promoted", f"p-{name}"] = content
            if self.g.random() < 0.3:
                self.repeat("shadow_promoted", "POST", path, body, first)
        else:
            self.counts["conflicts"] += 1
        time.sleep(self.g.uniform(0.0, 0.1))


# -- judging -----------------------------------------------------------------------------------------------------------------


def logged(events: Sequence[dict[str, Any]]) -> list[tuple[Key, dict[str, Any]]]:
    """What a client is answered about each event, in log order."""
    names = [arm["name"] for arm in events[0]["arms"]]
    found: list[tuple[Key, dict[str, Any]]] = []
    for event in events:
        kind, content = event["event"], {"offset": event["offset"]}
        if kind not in KINDS:
            continue
        key = event["id"]
        if kind == "decided":
            content["arm"] = names[event["arm"]]
        elif kind == "shadow_promoted":
            content |= {name: event[name] for name in ("shadow", "shadow_offset")}
        elif kind == "amended":
            key = f"{key}/{event['amendment']}"
            content |= {name: event.get(name, {}) for name in ("reward", "cost", "signals")}
        else:
            content |= {name: event[name] for name in (("reward",) if kind == "observed" else ("cost", "signals"))}
        found.append(((kind, key), content))
    return found


def check_log(row: Row, events: Sequence[dict[str, Any]], acknowledged: dict[Key, dict[str, Any]]) -> None:
    """Count in the row what is lost and what is there twice; what was never acknowledged must not be there at all."""
    if [event["offset"] for event in events] != list(range(1, len(events) + 1)):
        row.broken.append("the offsets have a gap")
    entries = logged(events)
    found = dict(entries)
    lost = [f"{key}: acknowledged as {content}, in the log {found.get(key)}" for key, content in acknowledged.items()]
    lost = [line for line, (key, content) in zip(lost, acknowledged.items(), strict=True) if found.get(key) != content]
    twice = [f"{key}: {number} times in the log" for key, number in Counter(key for key, _ in entries).items() if number > 1]
    row.acknowledged, row.lost, row.twice = len(acknowledged), len(lost), len(twice)
    row.broken += [f"lost: {line}" for line in lost] + [f"twice: {line}" for line in twice]
    row.broken += [f"{key} is in the log, and was not acknowledged" for key in found if key not in acknowledged]


def check_learned(row: Row, events: Sequence[dict[str, Any]], bandit: dict[str, Any], shadows: Sequence[dict[str, Any]]) -> None:
    """Fold promotions and amendments by hand, and hold what a replica shows against that.

    bandit, shadows: as the service answers them.
    """
    deciding, policies, offsets = BODY["policy"]["kind"], dict[str, str](), dict[str, int]()
    arms, rewards, amended = dict[str, int](), dict[str, float](), Counter[str]()
    for event in events:
        kind, offset = event["event"], event["offset"]
        if kind == "shadow_created":
            policies[event["shadow"]], offsets[event["shadow"]] = event["policy"], offset
        elif kind == "shadow_promoted":
            name = event["shadow"]
            if event["shadow_offset"] != offsets[name]:
                row.broken.append(f"promotion {event['id']} of {event['shadow_offset']}, and {name} was of {offsets[name]}")
            policies[name], deciding, offsets[name] = deciding, policies[name], offset
        elif kind == "observed":
            arms[event["id"]], rewards[event["id"]] = event["arm"], event["reward"]
        elif kind == "amended":
            amended[event["id"]] += 1
            before = event["before"].get("reward", rewards[event["id"]])
            if (event["n"], before) != (amended[event["id"]], rewards[event["id"]]):
                row.broken.append(f"amendment {event['n']} of {event['id']} says {before} was known, not {rewards[event['id']]}")
            rewards[event["id"]] = event["reward"]
    shown = (bandit["policy"]["kind"], {one["name"]: (one["policy"]["kind"], one["offset"]) for one in shadows})
    if shown != (deciding, {name: (policies[name], offsets[name]) for name in policies}):
        row.broken.append(f"shown are {shown}; by the log {deciding} decides, and shadows are {policies} of {offsets}")
    for index, arm in enumerate(bandit["arms"]):
        of_arm = [rewards[decision] for decision, played in arms.items() if played == index]
        mean = sum(of_arm) / max(1, len(of_arm))
        if arm["outcomes"] != len(of_arm) or abs((arm["mean_reward"] or 0.0) - mean) > 1e-9:
            row.broken.append(f"arm {arm['name']}: {arm['outcomes']} of {arm['mean_reward']}; by the log {len(of_arm)} of {mean}")


def _judged(fault: str, replicas: Replicas, workers: Sequence[_Worker], starts: Sequence[float]) -> Row:
    acknowledged, counts, row = dict[Key, dict[str, Any]](), Counter[str](), Row(fault=fault)
    for worker in workers:
        acknowledged |= worker.acknowledged
        counts += worker.counts
        row.broken += worker.broken
    first = replicas.servers[0]
    events = first.events(BANDIT)
    check_log(row, events, acknowledged)
    judged, ends = Judged(), {BANDIT: len(events)}
    for server in replicas.servers:
        judged.digests[server.name] = digests(server, ends)
        shadows = server.ask("GET", f"/v1/bandits/{BANDIT}/shadows").body["shadows"]
        check_learned(row, events, server.ask("GET", f"/v1/bandits/{BANDIT}").body, shadows)
    judged.digests["replayed from zero"] = _replayed(first.store)
    for server in replicas.servers:
        server.kill()
        server.start()
    for server in replicas.servers:
        server.wait_until_ready()
        judged.digests[f"{server.name}, killed and started"] = digests(server, ends)
    judged.verdict.check_digests(judged.digests)
    row.broken += judged.verdict.differing
    row.digests = judged.agreement()
    of_kind = Counter(kind for kind, _ in acknowledged)
    row.seen = (
        f"{len(starts)} kills; ready again after {statistics.median(starts):.1f} s (median); {of_kind['decided']:,} decisions, "
        f"{of_kind['partial']:,} partial and {of_kind['observed']:,} whole outcomes, {of_kind['amended']:,} amendments, "
        f"{of_kind['shadow_promoted']:,} promotions of 2 shadows, each logged once and nothing else; cut off: "
        f"{counts['cut off amended']} amendments, {counts['cut off shadow_promoted']} promotions, of which "
        f"{counts['found amended']} and {counts['found shadow_promoted']} had been logged, as their repetition said; "
        f"{counts['repeated amended'] + counts['repeated shadow_promoted']:,} others repeated on purpose, answered alike"
    )
    return row


def _replayed(store: str) -> Digests:
    return {name: found[:2] for name, found in replayed(store).items()}
