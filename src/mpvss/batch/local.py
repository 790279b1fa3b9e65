"""Workers as processes of this machine. One that crashes, however it does, takes nothing with it but its task."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpvss.batch.locks import lock
from mpvss.errors import MpvssError

if TYPE_CHECKING:
    from mpvss.batch.tasks import Outcome, Setup, Task

_START_SECONDS = 3600  # a model may have to be downloaded

ALIVE = "alive"
"""Every worker holds a lock on a file whose name begins so in the folder of unfinished work."""


class Slot:
    """A worker as the driver sees it, whichever engine runs it.

    Attributes:
        ready: Whether its networks are loaded.
        task: What it works on.
        silent: Seconds in which it gave no sign of life.
    """

    def __init__(self) -> None:
        self.ready = False
        self.task: Task | None = None
        self.silent = 0.0


def overdue(slot: Slot, waited: float, stall: int) -> int | None:
    """Count the seconds in which a worker that has something to do gave no sign of life; what it gives sets them to 0.

    Args:
        slot: The worker.
        waited: Seconds without a sign, since the last call.
        stall: Most seconds for a task; a model may take an hour to load.

    Returns:
        The limit, if it is reached; else ``None``.
    """
    if slot.ready and slot.task is None:
        return None
    slot.silent += waited
    limit = stall if slot.ready else max(stall, _START_SECONDS)
    return limit if slot.silent >= limit else None


def silent_error(limit: int) -> str:
    """What is said of the task of a worker that was overdue."""
    return f"its worker got nothing done for {limit} s and was ended; --stall allows more"


class LocalEngine:
    """A fixed number of worker processes.

    Args:
        setup: What all workers share; ``scratch`` is a folder here.
        workers: Number of processes.
        level: Level of their logging.
    """

    def __init__(self, setup: "Setup", workers: int, level: int) -> None:
        self._setup, self._level = setup, level
        self._context = get_context("spawn")  # a process that has threads must not fork
        self._slots: list[_Slot | None] = [None] * workers
        self._started = 0
        for slot in range(workers):
            self._start(slot)

    def _start(self, slot: int) -> None:
        self._started += 1
        identity = f"{os.getpid()}-{self._started}"
        ours, theirs = self._context.Pipe()
        life, holds = self._context.Pipe(duplex=False)
        device = _device(self._setup.settings.segment.device, slot)
        process = self._context.Process(
            target=_serve, args=(theirs, life, self._setup, identity, device, self._level), daemon=True
        )
        # Ctrl-C goes to all processes of a terminal, and finds a worker that is still starting: it inherits this mask.
        with _deaf_to_ctrl_c():
            process.start()
        theirs.close()
        life.close()
        self._slots[slot] = _Slot(process, ours, holds, identity)

    def idle(self) -> list[int]:
        """Workers that are ready for a task."""
        return [number for number, slot in enumerate(self._slots) if slot and slot.ready and slot.task is None]

    def submit(self, worker: int, task: "Task") -> None:
        """Give a task to an idle worker."""
        slot = self._slots[worker]
        assert slot is not None
        slot.task, slot.silent = task, 0.0
        with suppress(OSError):  # it is dead, which ``wait`` will notice
            slot.pipe.send(task)

    def wait(self, seconds: float) -> tuple[list["Outcome"], int]:
        """Wait until something happens: what became of tasks, and how many workers crashed without one.

        Raises:
            MpvssError: The workers cannot load the model.
        """
        by_pipe = {slot.pipe: number for number, slot in enumerate(self._slots) if slot}
        outcomes: list[Outcome] = []
        deaths = 0
        began = time.monotonic()
        ready = connection.wait(list(by_pipe), seconds)
        # Not more than was asked for: while this process was stopped, as by Ctrl-Z, so were the workers.
        waited = min(time.monotonic() - began, seconds)
        for pipe in ready:
            assert isinstance(pipe, Connection)
            number = by_pipe[pipe]
            slot = self._slots[number]
            assert slot is not None
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                lost = self._bury(number)
                if lost is None:
                    deaths += 1
                else:
                    outcomes.append(lost)
                self._start(number)
                continue
            slot.silent = 0.0
            if kind == "beat":
                continue
            if kind == "refused":
                raise MpvssError(value)
            if kind == "ready":
                slot.ready = True
            else:
                slot.task = None
                outcomes.append(value)
        outcomes += self._end_stalled(waited, {by_pipe[pipe] for pipe in ready if isinstance(pipe, Connection)})
        return outcomes, deaths

    def _end_stalled(self, waited: float, responsive: set[int]) -> "list[Outcome]":
        """End workers without a heartbeat for too long: stopped, or hanging where only SIGKILL reaches them."""
        outcomes = []
        for number, slot in enumerate(self._slots):
            if slot is None:
                continue
            limit = overdue(slot, 0.0 if number in responsive else waited, self._setup.stall)
            if limit is not None:
                slot.process.kill()
                lost = self._bury(number)
                if lost is not None:
                    outcomes.append(replace(lost, error=silent_error(limit)))
                self._start(number)
        return outcomes

    def _bury(self, number: int) -> "Outcome | None":
        """Remove what a dead worker left; return what became of its task."""
        from shutil import rmtree

        from mpvss.batch.tasks import Outcome

        slot = self._slots[number]
        assert slot is not None
        self._slots[number] = None
        slot.process.join(5)
        slot.process.kill()
        slot.process.join()
        slot.pipe.close()
        slot.life.close()
        assert self._setup.scratch is not None
        rmtree(Path(self._setup.scratch) / slot.identity, ignore_errors=True)
        with suppress(OSError):
            (Path(self._setup.scratch).parent / f"{ALIVE}-{slot.identity}").unlink()
        if slot.task is None:
            return None
        code = slot.process.exitcode or 0
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return Outcome(slot.task, error=f"its worker died: {how}", died=True)

    def close(self) -> None:
        """End the workers, with whatever they are doing."""
        for slot in self._slots:
            if slot:
                slot.process.kill()
        for number, slot in enumerate(self._slots):
            if slot:
                self._bury(number)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Slot(Slot):
    def __init__(self, process: Any, pipe: Connection, life: Connection, identity: str) -> None:
        super().__init__()
        self.process, self.pipe, self.life, self.identity = process, pipe, life, identity


def _serve(pipe: Connection, life: Connection, setup: "Setup", identity: str, device: str, level: int) -> None:
    """A worker process, from its start to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, args=(life,), daemon=True).start()
    assert setup.scratch is not None
    # Kept until the process ends.
    alive = lock(Path(setup.scratch).parent / f"{ALIVE}-{identity}", seconds=60)  # noqa: F841
    os.environ["OMP_NUM_THREADS"] = str(setup.settings.threads)
    from mpvss.batch.worker import Worker

    prepare(setup.settings.threads, level)
    try:
        worker = Worker(setup, identity, device, lambda: pipe.send(("beat", None)))
    except MpvssError as error:
        pipe.send(("refused", str(error)))
        return
    pipe.send(("ready", None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(("done", worker.run(task)))


def prepare(threads: int, level: int) -> None:
    """Set a worker process up: its threads and its logging."""
    import logging

    from mpvss._threads import use_threads
    from mpvss._validate import PublicFormatter

    use_threads(threads)
    logging.basicConfig(level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PublicFormatter())
    logging.getLogger("mpvss").setLevel(max(level, logging.WARNING))
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _device(name: str | int, slot: int) -> str:
    """The settings' device; where there are several GPUs, one of them for each worker in turn."""
    from mpvss._devices import cuda_devices

    count = cuda_devices(name)
    return f"cuda:{slot % count}" if count else str(name)


def _end_with_driver(life: Connection) -> None:
    """The driver holds the other end, which closes when it ends, even by SIGKILL."""
    try:
        life.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
