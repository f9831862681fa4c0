"""SIGTERM, which a scheduler sends some time before it takes the machine away."""

import signal
import threading
from types import FrameType


class Preempted(BaseException):
    """The run was told to end, and what it had done is saved. Like KeyboardInterrupt no Exception: nothing on the way
    out may take it for a fault and go on."""


class Notice:
    """While the context is open, SIGTERM ends nothing and is noted in `given`.

    Python hands signals to the main thread; in another one there is nothing to note.
    """

    given = False

    def __enter__(self) -> "Notice":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.given = True


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for the time in which there is nothing to save."""
    raise Preempted("ended by SIGTERM; the same command continues")
