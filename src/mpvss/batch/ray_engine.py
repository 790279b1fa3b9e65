"""Workers as actors of a Ray cluster. Addresses travel, frames do not."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mpvss.batch.local import ALIVE, Slot, overdue, prepare, silent_error
from mpvss.batch.locks import lock
from mpvss.batch.tasks import Outcome, Setup, Task
from mpvss.errors import ConfigError, MpvssError

log = logging.getLogger(__name__)

_SAY_SECONDS = 30.0
_CONNECT_SECONDS = 30


class RayEngine:
    """Actors of a cluster, each with its own networks. Ray starts none anew: that is done here, and seen by the driver.

    Args:
        setup: What all workers share.
        workers: Number of actors.
        level: Level of their logging.
        address: Of the cluster; ``None`` starts one on this machine.

    Raises:
        ConfigError: Ray is not installed.
        MpvssError: There is no cluster at the address.
    """

    def __init__(self, setup: Setup, workers: int, level: int, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers by default
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"engine ray needs a package that is not installed: pip install 'mpvss[ray]' ({error})"
            ) from error
        self._ray, self._setup, self._level = ray, setup, level
        if address not in {None, "local"}:
            _check_cluster(str(address))
        try:
            ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise MpvssError(f"expected a Ray cluster at {address or 'this machine'}, got none: {error}") from error
        gpus = setup.settings.segment.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        # One thread works, the other one tells the driver about it.
        self._actor = ray.remote(
            num_cpus=setup.settings.threads, num_gpus=int(gpus), max_restarts=0, max_concurrency=2
        )(_Actor)
        self._started = 0
        self._said = time.monotonic()
        self._slots: list[_Slot] = []
        for _ in range(workers):
            self._slots.append(self._start())

    def _start(self) -> "_Slot":
        self._started += 1
        handle = self._actor.remote(self._setup, f"{os.getpid()}-{self._started}", self._level)
        return _Slot(handle, handle.load.remote(), handle.beat.remote())

    def idle(self) -> list[int]:
        """Workers that are ready for a task."""
        return [number for number, slot in enumerate(self._slots) if slot.ready and slot.task is None]

    def submit(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker."""
        slot = self._slots[worker]
        slot.task, slot.silent = task, 0.0
        slot.answer = slot.handle.run.remote(task)

    def wait(self, seconds: float) -> tuple[list[Outcome], int]:
        """Wait until something happens: what became of tasks, and how many workers crashed without one.

        Raises:
            MpvssError: The workers cannot load the model.
        """
        ray = self._ray
        waiting = {slot.answer: number for number, slot in enumerate(self._slots) if slot.answer is not None}
        beats = {slot.beat: number for number, slot in enumerate(self._slots)}
        began = time.monotonic()
        ready, _ = ray.wait([*waiting, *beats], num_returns=1, timeout=seconds)
        waited = min(time.monotonic() - began, seconds)  # not more than was asked for, as in the local engine
        if ready:
            ready, _ = ray.wait([*waiting, *beats], num_returns=len(waiting) + len(beats), timeout=0)
        outcomes: list[Outcome] = []
        deaths = 0
        for reference in ready:
            if reference in waiting:
                outcome, died = self._answered(waiting[reference])
                outcomes += [outcome] if outcome is not None else []
                deaths += died
        responsive = {number for reference, number in beats.items() if reference in ready}
        deaths += sum([self._receive_beat(number) for number in responsive])
        outcomes += self._end_stalled(waited, responsive)
        self._say_what_is_missing()
        return outcomes, deaths

    def _receive_beat(self, number: int) -> bool:
        """Receive an actor's heartbeat, wait for the next one, and return whether it crashed while idle."""
        slot = self._slots[number]
        try:
            self._ray.get(slot.beat, timeout=0)
        except self._ray.exceptions.GetTimeoutError:  # of the actor that replaced a dead one
            return False
        except self._ray.exceptions.RayError:
            if slot.answer is not None:  # which fails as well, and says more
                return False
            self._replace(number)
            return True
        slot.started, slot.silent, slot.beat = True, 0.0, slot.handle.beat.remote()
        return False

    def _answered(self, number: int) -> tuple[Outcome | None, bool]:
        """What became of a worker's task, and whether it crashed without one.

        Raises:
            MpvssError: The worker cannot load the model.
        """
        ray, slot = self._ray, self._slots[number]
        task, answer = slot.task, slot.answer
        slot.task = slot.answer = None
        try:
            result = ray.get(answer)
        except ray.exceptions.RayError as error:
            self._replace(number)
            if task is None:
                return None, True
            reason = str(error).strip().splitlines()[0]
            lost = _is_lost_machine(error)
            return Outcome(task, error=f"its worker died: {reason}", died=True, preempted=lost), False
        if task is None and result is not None:
            raise MpvssError(result)
        slot.ready = True
        return (result if task is not None else None), False

    def _replace(self, number: int) -> None:
        self._ray.kill(self._slots[number].handle)
        self._slots[number] = self._start()

    def _end_stalled(self, waited: float, responsive: set[int]) -> list[Outcome]:
        """End actors without a heartbeat for too long. Those that wait for a machine have not started."""
        outcomes = []
        for number, slot in enumerate(self._slots):
            limit = overdue(slot, waited if slot.started and number not in responsive else 0.0, self._setup.stall)
            if limit is not None:
                if slot.task is not None:
                    outcomes.append(Outcome(slot.task, error=silent_error(limit), died=True))
                self._replace(number)
        return outcomes

    def _say_what_is_missing(self) -> None:
        if any(slot.ready for slot in self._slots) or time.monotonic() - self._said < _SAY_SECONDS:
            return
        self._said = time.monotonic()
        log.warning(
            "no worker is ready yet: they are loading, or waiting for %d CPUs each in a cluster of %g; fewer --workers "
            "or --threads need less",
            self._setup.settings.threads, self._ray.cluster_resources().get("CPU", 0),
        )  # fmt: skip

    def close(self) -> None:
        """End the workers, with whatever they are doing, and a cluster that was started here."""
        for slot in self._slots:
            self._ray.kill(slot.handle)
        self._ray.shutdown()


def _is_lost_machine(error: Exception) -> bool:
    """Whether the cluster took a worker's machine away, which says nothing about the task."""
    return bool(getattr(error, "preempted", False)) or "node has died" in str(error) or "preempt" in str(error).lower()


def _check_cluster(address: str) -> None:
    """Try to connect in another process, as Ray goes on trying for a quarter of an hour where nothing answers."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address], check=False, capture_output=True, text=True, errors="replace",
            timeout=_CONNECT_SECONDS,
        )  # fmt: skip
        if tried.returncode == 0:
            return
        reason = (tried.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_CONNECT_SECONDS} s"
    raise MpvssError(
        f"expected a Ray cluster at {address}, got none: {reason}; check the address and that the cluster runs; one "
        "with token authentication needs RAY_AUTH_MODE=token"
    )


class _Slot(Slot):
    def __init__(self, handle: Any, answer: Any, beat: Any) -> None:
        super().__init__()
        self.handle, self.answer, self.beat = handle, answer, beat
        self.started = False


class _Actor:
    """A worker as Ray sees it."""

    def __init__(self, setup: Setup, identity: str, level: int) -> None:
        self._setup, self._identity, self._level = setup, identity, level
        self._sign = threading.Event()
        self._sign.set()

    def beat(self) -> None:
        """Return when something got done since the last call."""
        self._sign.wait()
        self._sign.clear()

    def load(self) -> str | None:
        """Load the networks; return why that is not possible."""
        if self._setup.scratch is not None:
            self._alive = lock(Path(self._setup.scratch).parent / f"{ALIVE}-{self._identity}", seconds=60)
        from mpvss.batch.worker import Worker

        prepare(self._setup.settings.threads, self._level)
        try:
            self._worker = Worker(self._setup, self._identity, on_beat=self._sign.set)
        except MpvssError as error:
            return str(error)
        return None

    def run(self, task: Task) -> Outcome:
        """Do a task."""
        return self._worker.run(task)
