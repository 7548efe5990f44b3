"""The primary of Redis dies behind a replica that lags, which is then promoted: with and without WAIT.

replicas ── wire A ──> primary ── wire B ──> its replica        B is cut; seconds later the primary is killed;
                                                                the replica is promoted, A leads to it
"""

from __future__ import annotations

import time
from functools import partial

from bench.faults.cases.redis_killed import CLIENTS, after_a_loss, recover
from bench.faults.cases.shared import REPLICAS
from bench.faults.replicas import Replicas, at_work, judge
from bench.faults.rows import Options, Row, judged_row
from bench.faults.wire import Wire
from tools.processes import EVERYSEC, RedisServer, wait_until

FOLLOWING = "the replica of Redis follows its primary"


def run(options: Options) -> list[Row]:
    """Without WAIT, then with it."""
    rows = []
    for number, confirmations in enumerate((0, 1)):
        options.tell(number, 2)
        rows.append(_one(confirmations, options))
    return rows


def _one(confirmations: int, options: Options) -> Row:
    failovers = options.kills or (1 if options.quick else 5)
    lag_s = 2.0 if options.quick else 4.0
    folder = options.space(f"failover-{confirmations}")
    servers = [RedisServer(*EVERYSEC, "--repl-diskless-sync-delay", "0", folder=folder / f"redis-{i}") for i in range(2)]
    settings = {"REDIS_WAIT": str(confirmations)}
    with servers[0] as one, servers[1] as other, Wire(one.port) as way, Wire(one.port) as between:
        other.command("REPLICAOF", "127.0.0.1", between.port)
        wait_until(lambda: _in_step(other), FOLLOWING, 60.0)
        with Replicas(folder, f"redis://127.0.0.1:{way.port}", number=REPLICAS, settings=settings) as three:
            three.start()
            recovered, behind = [], 0
            primary, replica = one, other
            with at_work(three.servers, clients=options.clients or CLIENTS, seed=options.seed) as load:
                for _ in range(failovers):
                    load.until(200 if options.quick else 1000, limit_s=60.0)
                    wait_until(partial(_in_step, replica), FOLLOWING, 60.0)
                    between.cut()
                    time.sleep(lag_s)
                    told = primary.info("replication")
                    primary.kill()
                    between.lead_to(replica.port)  # what was on its way to the replica is lost
                    replica.command("REPLICAOF", "NO", "ONE")
                    behind += int(told["master_repl_offset"]) - int(replica.info("replication")["master_repl_offset"])
                    way.lead_to(replica.port)
                    between.mend()
                    primary, replica = replica, primary
                    replica.start("--replicaof", f"127.0.0.1 {between.port}")
                    recovered.append(recover(three))
                load.until(100, limit_s=60.0)
                record = load.stop()
            judged = judge(three, record)
    row = judged_row(
        f"Redis fails over to a lagging replica, NEXTARM_REDIS_WAIT={confirmations}",
        record,
        judged,
        seen="",
        may_lose=not confirmations,
    )
    row.seen = (
        f"{failovers} failovers, each {lag_s:g} s after the replica was cut off ({behind / 1024:,.0f} KiB of history lost in "
        f"all); 3 replicas ready after {max(recovered):.1f} s (longest), without a restart{after_a_loss(record, judged)}"
    )
    return row


def _in_step(replica: RedisServer) -> bool:
    told = replica.info("replication")
    return told.get("master_link_status") == "up" and told.get("master_sync_in_progress") == "0"
