"""Lets SIGTERM and SIGINT ask a run to stop; a second one ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

EXIT_STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a run that a signal stopped; it is saved, and can be resumed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Says whether a signal asked the run to stop.

    Attributes:
      signal_name: "SIGTERM" or "SIGINT", or "" as long as none came.
    """

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def handle(self, number: int, frame: object) -> None:
        """Handles a signal: notes the first one, and dies of the second."""
        if self.signal_name:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal_name = signal.Signals(number).name
        # os.write: the signal may have come in the middle of a print.
        with contextlib.suppress(OSError, ValueError):
            os.write(
                sys.__stderr__.fileno(),
                f"\n{self.signal_name}: saving after this step; once more stops now\n".encode(),
            )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a `StopRequest` while the context lasts (main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
