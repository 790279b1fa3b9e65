"""Workers as actors of a Ray cluster. Addresses travel, frames do not."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpvss.batch.local import ALIVE, prepare
from mpvss.batch.manifest import lock
from mpvss.batch.worker import Outcome, Setup, Task, Worker
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
            _demand_cluster(str(address))
        try:
            ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise MpvssError(f"expected a Ray cluster at {address or 'this machine'}, found none: {error}") from error
        gpus = setup.settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        self._actor = ray.remote(num_cpus=setup.settings.threads, num_gpus=int(gpus), max_restarts=0)(_Actor)
        self._started = 0
        self._said = time.monotonic()
        self._slots: list[_Slot] = []
        for _ in range(workers):
            self._slots.append(self._start())

    def _start(self) -> "_Slot":
        self._started += 1
        handle = self._actor.remote(self._setup, f"{os.getpid()}-{self._started}", self._level)
        return _Slot(handle, handle.load.remote())

    def idle(self) -> list[int]:
        """Workers that are ready for a task."""
        return [number for number, slot in enumerate(self._slots) if slot.ready and slot.task is None]

    def submit(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker."""
        slot = self._slots[worker]
        slot.task, slot.answer = task, slot.handle.run.remote(task)

    def wait(self, seconds: float) -> tuple[list[Outcome], int]:
        """Wait until something happens: what became of tasks, and how many workers died without one.

        Raises:
            MpvssError: The workers cannot load the model.
        """
        ray = self._ray
        waiting = {slot.answer: number for number, slot in enumerate(self._slots) if slot.answer is not None}
        answers, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        answers += [
            answer
            for answer in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]
            if answer not in answers
        ]
        outcomes: list[Outcome] = []
        deaths = 0
        for answer in answers:
            number = waiting[answer]
            slot = self._slots[number]
            slot.answer = None
            try:
                found = ray.get(answer)
            except ray.exceptions.RayError as error:
                if slot.task is None:
                    deaths += 1
                else:
                    reason = str(error).strip().splitlines()[0]
                    lost = _is_lost_machine(error)
                    outcomes.append(Outcome(slot.task, error=f"its worker died: {reason}", died=True, preempted=lost))
                ray.kill(slot.handle)
                self._slots[number] = self._start()
                continue
            if slot.task is not None:
                slot.task = None
                outcomes.append(found)
            elif found is not None:
                raise MpvssError(found)
            else:
                slot.ready = True
        self._say_what_is_missing()
        return outcomes, deaths

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


def _demand_cluster(address: str) -> None:
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
        f"expected a Ray cluster at {address}, found none: {reason}; check the address and that the cluster runs"
    )


class _Slot:
    def __init__(self, handle: Any, answer: Any) -> None:
        self.handle, self.answer = handle, answer
        self.ready = False
        self.task: Task | None = None


class _Actor:
    """A worker as Ray sees it."""

    def __init__(self, setup: Setup, identity: str, level: int) -> None:
        self._setup, self._identity, self._level = setup, identity, level

    def load(self) -> str | None:
        """Load the networks; return why that is not possible."""
        if self._setup.scratch is not None:
            self._alive = lock(Path(self._setup.scratch).parent / f"{ALIVE}-{self._identity}", seconds=60)
        prepare(self._setup.settings.threads, self._level)
        try:
            self._worker = Worker(self._setup, self._identity)
        except MpvssError as error:
            return str(error)
        return None

    def run(self, task: Task) -> Outcome:
        """Do a task."""
        return self._worker.run(task)
