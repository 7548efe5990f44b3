"""The mirror of one bandit's regressions on a device: a stack that is synced to its arms and scores where that is quicker.

    fold   --> prepare --> sync(arms)              what changed: correction rows, folded inverses, thetas --> Stack
    decide --> Regression.score --> score(arms, z)     means and widths, or None: compute them on the CPU

It is optional. The truth are the float64 sums of the arms, and what is derived from them on the CPU is derived with and
without a mirror; digests and packed states do not depend on it. It scores only the very arms that it was synced to last, and
nothing after its first failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from bandits.functional.inverse import Inverse
from bandits.gpu import cost_model as devices
from bandits.gpu.cost_model import Costs
from bandits.gpu.stack import Stack
from bandits.regression.model import Regression
from bandits.regression.ridge import Ridge, RidgeArm
from bandits.types import Policy

KINDS = frozenset({"lin-ucb", "pak-ucb"})
"""Policies whose `State.cache` is free for a mirror."""
PATIENCE_S = 2.0
"""A device that has not answered by then is taken for broken: a decision costs milliseconds on the CPU."""

_MEASURING = threading.Lock()


def measured(where: torch.device) -> Costs:
    """`devices.costs`; bandits that are loaded at once do not disturb its clock."""
    with _MEASURING:
        return devices.costs(where)


class DeviceMirror:
    """A scorer of ridge arms on a device, synced to the arms after every fold. Any thread may score; one at a time should sync.

    size: p.  ridge: > 0.  batch: contexts that are scored together as a rule; the stack is built where the costs prefer its
    device for some batch of up to so many. Not before `sync`: to measure and to build take a second.
    broken: why it answers nothing any more; "" = it works.  stack: None = none was built (yet), or it is broken.
    dtype, threaded: of the stack.
    """

    def __init__(
        self,
        *,
        size: int,
        ridge: float,
        device: torch.device,
        batch: int,
        costs: Callable[[torch.device], Costs] = measured,
        dtype: torch.dtype | None = None,
        threaded: bool = False,
    ) -> None:
        self.size, self.ridge, self.device, self.batch = size, ridge, device, batch
        self.broken = ""
        self.stack: Stack | None = None
        self._measure, self._dtype, self._threaded = costs, dtype, threaded
        self._costs: Costs | None = None
        self._mirrored: list[Ridge] = []
        self._warm: Future[None] = Future()
        self._lock = threading.Lock()

    def sync(self, arms: Sequence[RidgeArm]) -> None:
        """Send the stack what changed since the last call. Returns before the device has it; never raises."""
        with self._lock:
            if self.broken:
                return
            try:
                self._sync([arm.ridge(self.ridge) for arm in arms])
            except Exception as error:
                self._give_up(error)

    def _sync(self, derived: Sequence[Ridge]) -> None:
        stack = self.stack
        if stack is None or stack.arms > len(derived):
            stack = self.stack = self._built(len(derived))
            self._mirrored = []
        if stack is None:
            return
        while stack.arms < len(derived):
            stack.add_arm()
        for arm, now in enumerate(derived):
            self._mirror(stack, arm, now)
        grown = len(derived) > len(self._mirrored)
        self._mirrored = list(derived)
        if grown:
            self._warm = stack.submit_warm()

    def _built(self, arms: int) -> Stack | None:
        """A stack, where it will be asked."""
        self._costs = self._costs or self._measure(self.device)
        if not self._costs.from_batch(arms=arms, size=self.size, most=self.batch):
            return None
        return Stack(
            arms=arms,
            size=self.size,
            ridge=self.ridge,
            device=self.device,
            dtype=self._dtype,
            batch=self.batch,
            threaded=self._threaded,
        )

    def _mirror(self, stack: Stack, arm: int, now: Ridge) -> None:
        before = self._mirrored[arm] if arm < len(self._mirrored) else None
        if now is before:
            return
        rows = None if before is None else _added(before.pending_inverse, now.pending_inverse)
        if before is None or rows is None:  # at the latest when the CPU folds its rows, so rounding never adds up
            stack.load(arm, inverse=now.pending_inverse.base, theta=now.theta)
            rows = _correction(now.pending_inverse)
        elif now.theta is not before.theta:
            stack.set_theta(arm, now.theta)
        if len(rows):
            stack.append(arm, rows)

    def score(self, derived: Sequence[Ridge], z: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B, K) means and (B, K) widths of lifted features z (B, p); None where the CPU should compute them: these are not the
        arms that were synced last, the CPU is quicker, the device is not ready or failed, or its precision cannot hold them.
        """
        if not self._lock.acquire(blocking=False):  # a sync is under way
            return None
        try:
            stack = self.stack
            if self.broken or stack is None or not self._knows(derived) or not self._prefers(len(z)):
                return None
            asked = stack.submit_scores(z)
        except Exception as error:
            self._give_up(error)
            return None
        finally:
            self._lock.release()
        try:
            mean, width = asked.result(timeout=PATIENCE_S)
        except Exception as error:
            self._give_up(error)
            return None
        return (mean, width) if bool((mean.isfinite() & width.isfinite()).all()) else None

    def _knows(self, derived: Sequence[Ridge]) -> bool:
        return (
            self._warm.done()
            and len(derived) == len(self._mirrored)
            and all(ours is theirs for ours, theirs in zip(self._mirrored, derived, strict=True))
        )

    def _prefers(self, batch: int) -> bool:
        return self._costs is not None and self._costs.prefers_gpu(arms=len(self._mirrored), size=self.size, batch=batch)

    def _give_up(self, error: Exception) -> None:
        """Answer nothing from now on. The thread of the stack ends with its last reference; a device that may never answer is not
        waited for.
        """
        self.broken = self.broken or f"{type(error).__name__}: {error}"
        self.stack = None
        self._mirrored = []


def of(policy: Policy, *, device: str, batch: int) -> DeviceMirror | None:
    """Where a bandit of this policy scores; None = on the CPU, and nothing is mirrored. Cheap, and asks no device.

    device: cpu, or a GPU that `devices.device` found.  batch: contexts that are scored together as a rule.
    """
    if device == "cpu" or policy.kind not in KINDS or len(policy.signals) > 1:
        return None
    regression = getattr(policy, "regression", None)
    if not isinstance(regression, Regression) or regression.kernel is not None:
        return None
    return DeviceMirror(size=regression.size, ridge=regression.ridge, device=torch.device(device), batch=batch)


def _correction(inverse: Inverse) -> Tensor:
    """(q, p)."""
    return inverse.base[:0] if inverse.correction is None else inverse.correction


def _added(before: Inverse, now: Inverse) -> Tensor | None:
    """(n, p) the correction rows added since; None where more than that changed. They are compared by value: an inverse updated
    with what was pending in the width has the same rows as the width, and comes from another line of them.
    """
    if now.base is not before.base:
        return None
    old, new = _correction(before), _correction(now)
    return new[len(old) :] if torch.equal(new[: len(old)], old) else None
