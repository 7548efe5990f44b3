"""Evaluations on the workers of a running Dask scheduler.

    plans ──as JSON──> scheduler ──> workers, each plan in a process of its own ──results──> here

Workers have the same version of nextarm, and reach the source by the same name: a file of a shared folder, or a store over Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from importlib.metadata import version
from typing import Any

import msgspec

from service import install_hint
from service.engine.evaluation_process import EvaluationFailed, Plan, evaluate_in_process
from service.storage.base import StorageUnavailableError

SCHEME = "dask://"
CONNECT_S = 10.0
_plan_decoder = msgspec.json.Decoder(Plan)


def check_address(executor: str) -> str:
    """HOST:PORT of `dask://HOST:PORT`. Raises `StorageUnavailableError`."""
    host, colon, port = executor.removeprefix(SCHEME).rpartition(":")
    if not executor.startswith(SCHEME) or not host or not colon or not port.isdigit():
        raise StorageUnavailableError(
            f"--executor {executor}: it is dask://HOST:PORT, the address of a Dask scheduler; leave it out for processes of this "
            "machine"
        )
    return f"{host}:{port}"


def evaluate_plan(plan: bytes, nextarm: str) -> dict[str, Any]:
    """What a worker runs: the results of a plan (JSON), in a process that ends with this call. nextarm: the version that asks."""
    if version("nextarm") != nextarm:
        raise EvaluationFailed(f"a worker has nextarm {version('nextarm')}, and this is {nextarm}: install one version on all")
    return asyncio.run(evaluate_in_process(_plan_decoder.decode(plan)))


def evaluate_on_cluster(
    executor: str, split: Callable[[int], Sequence[Plan]], done: Callable[[int, int], object]
) -> list[dict[str, Any]]:
    """The results of each plan, in their order. split: into at most so many plans, given the threads of all workers.
    done: called with the plans that are finished, and how many there are.

    Raises `StorageUnavailableError` where the cluster cannot be used, and `EvaluationFailed`.
    """
    address = check_address(executor)
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError:
        raise StorageUnavailableError(f"--executor {SCHEME}... needs dask: {install_hint('dask')}") from None
    try:
        connect: Any = Client  # it has no types
        client = connect(f"tcp://{address}", timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise StorageUnavailableError(f"--executor {executor}: no Dask scheduler answers there ({error})") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise StorageUnavailableError(f"--executor {executor}: its scheduler has no workers; start some with `dask worker`")
        plans = split(threads)
        with client.get_executor(pure=False, retries=0) as pool:
            futures = [pool.submit(evaluate_plan, msgspec.json.encode(plan), version("nextarm")) for plan in plans]
            try:
                for count, future in enumerate(as_completed(futures), 1):
                    future.result()
                    done(count, len(plans))
            except ModuleNotFoundError as error:
                raise StorageUnavailableError(
                    f"--executor {executor}: a worker has no nextarm ({error}): install it there"
                ) from None
            except KilledWorker as error:
                raise StorageUnavailableError(f"--executor {executor}: {error}") from None
            finally:
                for future in futures:
                    future.cancel()
        return [future.result() for future in futures]
