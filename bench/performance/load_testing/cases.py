"""What is measured: each method is one slice of one case at one target, checked against what the service says it accepted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.performance.load_testing import wrk
from bench.performance.load_testing.bare import ID, ROUTES
from bench.performance.load_testing.measure import Slice, measured
from bench.performance.load_testing.plans import Plan
from bench.performance.load_testing.rig import BATCH, Rig, ask_bodies, batch_bodies

CONNECTIONS = (1, 16, 64)
ROUNDS = ("rounds", "rounds without prompts")
"""Beside these only the Starlette route is measured, which they are judged by."""
SINGLES = (*ROUNDS, "select", "outcome")
MANY = 10_000
"""More different texts than this are all new: no slice sends so many."""
PROBE = 4_000
"""Outcomes of the short run that tells how many a slice needs."""


class Cases:
    """Slices of `seconds` each (batches: three times as long), with scripts in `folder`."""

    def __init__(self, folder: Path, *, bare: tuple[str, int], seconds: float) -> None:
        self._folder = folder
        self._url, self._pid = bare
        self._seconds = seconds
        self._asks = self._written("asks", ask_bodies())
        self._batches = self._written("batches", batch_bodies())
        self._empty = self._written("empty", ["{}"])
        self._rates: dict[tuple[str, str, int], float] = {}  # outcomes per second and replica, of the last slice

    def _written(self, name: str, lines: Sequence[str]) -> str:
        path = self._folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)

    # -- the yardstick -----------------------------------------------------------------------------------------------------

    def on_bare(self, case: str, route: str, connections: int) -> Slice:
        """A decision or an outcome at a bare route."""
        path = f"/{route}/decisions"
        plan = {
            "rounds": Plan(kind="rounds", path=path, file=self._asks),
            "rounds without prompts": Plan(kind="rounds", path=path, file=self._empty),
            "select": Plan(kind="bodies", path=path, file=self._asks),
            "outcome": Plan(kind="outcomes", path=path, prefix=ID[:-8], supply=10**8),
        }[case]
        return measured(
            lambda: [self._drive(self._url, plan, connections)],
            case=case,
            target=route,
            connections=connections,
            pids=[self._pid],
        )

    # -- the service -------------------------------------------------------------------------------------------------------

    def rounds(self, rig: Rig, connections: int) -> Slice:
        """Decisions and their outcomes in turn, as a router asks."""
        with rig.bandit() as name:
            return self._played(rig, "rounds", connections, name, self._asks)

    def rounds_without_prompts(self, rig: Rig, connections: int) -> Slice:
        """The same by Thompson sampling: what is left without mathematics."""
        with rig.bandit(embedder="") as name:
            return self._played(rig, "rounds without prompts", connections, name, self._empty)

    def _played(self, rig: Rig, case: str, connections: int, name: str, file: str) -> Slice:
        plans = [Plan(kind="rounds", path=f"/v1/bandits/{name}/decisions", file=file)] * len(rig.urls)
        return self._measured(rig, case, connections, plans, accepted=lambda: sum(rig.counts(name)))

    def select(self, rig: Rig, connections: int) -> Slice:
        """Single decisions with a given vector."""
        with rig.bandit() as name:
            plan = Plan(kind="bodies", path=f"/v1/bandits/{name}/decisions", file=self._asks)
            return self._decided(rig, "select", connections, name, plan)

    def select_batch(self, rig: Rig, connections: int) -> Slice:
        """Batches of decisions."""
        with rig.bandit() as name:
            plan = Plan(kind="bodies", path=f"/v1/bandits/{name}/decisions/batch", file=self._batches)
            return self._decided(rig, "select batch", connections, name, plan, items=BATCH)

    def text(self, rig: Rig, connections: int, *, embedder: str, different: int) -> Slice:
        """Single decisions about texts."""
        with rig.bandit(embedder=embedder, learned=BATCH) as name:
            prefix = f"{name}-" if different > MANY else ""  # what one slice embedded is in the cache for all that follow
            plan = Plan(kind="texts", path=f"/v1/bandits/{name}/decisions", prefix=prefix, different=different)
            case = f"{embedder}, {'new texts' if different > MANY else f'{different} texts again and again'}"
            return self._decided(rig, case, connections, name, plan)

    def health(self, rig: Rig, connections: int) -> Slice:
        """`healthz`."""
        plan = Plan(kind="bodies", method="GET", path="/healthz", file=self._written("nothing", [""]))
        return self._measured(rig, "healthz", connections, [plan] * len(rig.urls))

    def outcome(self, rig: Rig, connections: int) -> Slice:
        """Single outcomes, each of a decision that was made before."""
        return self._learned(rig, "outcome", connections)

    def outcome_batch(self, rig: Rig, connections: int) -> Slice:
        """Batches of outcomes."""
        return self._learned(rig, "outcome batch", connections, items=BATCH)

    # -- one slice ---------------------------------------------------------------------------------------------------------

    def _decided(self, rig: Rig, case: str, connections: int, name: str, plan: Plan, *, items: int = 1) -> Slice:
        plans = [plan] * len(rig.urls)
        return self._measured(rig, case, connections, plans, items=items, accepted=lambda: rig.counts(name)[0])

    def _learned(self, rig: Rig, case: str, connections: int, *, items: int = 1) -> Slice:
        key = (rig.name, case, connections)
        with rig.bandit() as name:
            if key not in self._rates:
                rig.open_decisions(name, PROBE, prefix="probe-")
                plan = self._outcomes(name, "probe-", PROBE, items)
                told = self._drive(rig.urls[0], plan, connections, seconds=1)
                self._rates[key] = told.requests * items / told.seconds
            supply = round(1.3 * self._rates[key] * self._length(items)) + 8 * connections * items
            plans = [self._outcomes(name, f"s{i}-", supply, items) for i in range(len(rig.urls))]
            for plan in plans:
                rig.open_decisions(name, supply, prefix=plan.prefix)
            piece = self._measured(rig, case, connections, plans, items=items, accepted=lambda: rig.counts(name)[1])
        self._rates[key] = piece.per_s / len(rig.urls)
        return piece

    def _outcomes(self, name: str, prefix: str, supply: int, items: int) -> Plan:
        path = f"/v1/bandits/{name}/outcomes/batch" if items > 1 else f"/v1/bandits/{name}/decisions"
        return Plan(kind="outcome batches" if items > 1 else "outcomes", path=path, prefix=prefix, supply=supply, size=items)

    def _measured(
        self,
        rig: Rig,
        case: str,
        connections: int,
        plans: Sequence[Plan],
        *,
        items: int = 1,
        accepted: Callable[[], int] | None = None,
    ) -> Slice:
        """connections: of all replicas together."""
        each = max(1, connections // len(rig.urls))

        def drive() -> list[wrk.Counted]:
            seconds = self._length(items)
            running = [self._begin(url, plan, each, seconds) for url, plan in zip(rig.urls, plans, strict=True)]
            return [wrk.ended(process) for process in running]

        return measured(
            drive,
            case=case,
            target=rig.name,
            connections=connections,
            pids=rig.pids,
            items=items,
            store=rig.store_pids,
            accepted=accepted,
        )

    def _length(self, items: int) -> float:
        return self._seconds if items == 1 else 3 * self._seconds

    def _begin(self, url: str, plan: Plan, connections: int, seconds: float | None = None) -> subprocess.Popen[str]:
        return wrk.begin(url, plan, folder=self._folder, connections=connections, seconds=seconds or self._seconds)

    def _drive(self, url: str, plan: Plan, connections: int, seconds: float | None = None) -> wrk.Counted:
        return wrk.ended(self._begin(url, plan, connections, seconds))

    # -- rounds ------------------------------------------------------------------------------------------------------------

    def singles(self, case: str, rigs: Sequence[Rig], *, connections: int, turn: int) -> Iterator[Slice]:
        """Every target once, one after the other; who begins changes from round to round."""
        asks: dict[str, Callable[[Rig, int], Slice]] = {
            "rounds": self.rounds,
            "rounds without prompts": self.rounds_without_prompts,
            "select": self.select,
            "outcome": self.outcome,
        }
        ask = asks[case]
        order: list[str | Rig] = [*(["starlette"] if case in ROUNDS else ROUTES), *rigs]
        for target in order[turn % len(order) :] + order[: turn % len(order)]:
            yield self.on_bare(case, target, connections) if isinstance(target, str) else ask(target, connections)
