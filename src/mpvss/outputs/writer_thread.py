"""A thread that writes while another segments, as the reader's thread reads ahead.

FFmpeg, OpenCV and torch release the GIL while they work, so the three overlap. Results are handed over, not copied, and
few of them wait.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Queue
from typing import Any


class WriterThread:
    """Calls that are made in order in a thread, while the caller goes on; a context manager.

    The first error ends it: later calls are not made, and the next ``call``, or the end of the block, raises it.
    """

    def __init__(self, depth: int) -> None:
        """Prepare.

        Args:
            depth: Most calls that wait; ``call`` blocks when there are so many.
        """
        self._queue: Queue[tuple[Callable[..., object], tuple[Any, ...]] | None] = Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="mpvss-write", daemon=True)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self._error is None:
                try:
                    task[0](*task[1])
                except BaseException as error:  # it is the caller's
                    self._error = error

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called after those before it."""
        if self._error is not None:
            raise self._error
        self._queue.put((function, arguments))

    def __enter__(self) -> "WriterThread":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # What still waits is of no use any more.
            with suppress(Empty):
                while True:
                    self._queue.get_nowait()
        interrupted: KeyboardInterrupt | None = None
        asked = False
        while not asked or self._thread.is_alive():  # a second Ctrl-C must not have two threads write one file
            try:
                if not asked:
                    self._queue.put(None)
                    asked = True
                self._thread.join()
            except KeyboardInterrupt as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted
        if kind is None and self._error is not None:
            raise self._error
