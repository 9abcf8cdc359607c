"""Lets SIGTERM and SIGINT stop a run: at once where nothing can be lost, else when it is saved."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

EXIT_STOPPED = 75
"""Exit code (EX_TEMPFAIL) of a run that a signal stopped; the same command continues it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 5.0
"""Seconds that a program has to end in good order where it had nothing to save."""


class Interrupted(KeyboardInterrupt):
    """Ends what a run was doing when a signal came and there was nothing to save."""


class StopRequest:
    """Says whether a signal asked the run to stop.

    A run goes through three phases. At first nothing is lost with it, and a signal raises
    `Interrupted`. From `hold` on there are steps to save, and a signal is noted. After `finish`
    everything is done, and signals change nothing any more.

    Attributes:
      signal_name: "SIGTERM" or "SIGINT", or "" as long as none came.
      raises: whether `Interrupted` is raised; False where somebody else looks at the request.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.raises = True
        self._holds = self._late = self._again = False
        self._exit_code: int | None = None

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    @property
    def may_end(self) -> bool:
        """Returns whether nothing would be lost with the process."""
        return not self._holds and self._exit_code is None

    def hold(self) -> None:
        """Begins the phase in which a signal is only noted, for there is something to save."""
        self._holds = True

    def finish(self, exit_code: int) -> None:
        """Begins the phase in which nothing is left to do but to exit with this code."""
        self._exit_code = exit_code

    def handle(self, number: int, frame: object) -> None:
        """Handles a signal; the second one ends the process."""
        if self._exit_code is not None:
            if self._late:
                os._exit(self._exit_code)
            self._late = True
        elif self._again:
            self._again = False
            if self.may_end:
                raise Interrupted(self.signal_name)
        elif self.signal_name:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self.note(number)
            if self.may_end and self.raises:
                raise Interrupted(self.signal_name)

    def raise_again(self) -> None:
        """Raises `Interrupted` once more in a moment, for it was raised where Python drops it."""
        self._again = True
        number = signal.Signals[self.signal_name]
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    def note(self, number: int) -> None:
        """Notes the first signal and says what follows."""
        self.signal_name = signal.Signals(number).name
        follows = "saving after this step; once more stops now"
        if self.may_end:
            follows = "stopped; there was nothing to save, and the same command goes on from here"
        say(f"{self.signal_name}: {follows}")


def say(text: str) -> None:
    """Prints a line on stderr at a moment that may be in the middle of another print."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())


_of_program: StopRequest | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a `StopRequest` while the context lasts (main thread only).

    Under `run_program` it is the program's own, which begins earlier and lasts longer.
    """
    if _of_program is not None:
        yield _of_program
        return
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


def run_program(main: Callable[[], int]) -> int:
    """Runs a program whose signals are handled from this call to the end of the process.

    Args:
      main: the program.

    Returns:
      What it returns, or `EXIT_STOPPED` where a signal ended it at once.
    """
    global _of_program
    _of_program = request = StopRequest()
    # The last of what is done at exit, for it is the first that is asked for: from there on Python
    # would let a signal kill the process.
    atexit.register(_ignore_signals)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_if_deaf, args=(reader, request), daemon=True).start()
    report = sys.unraisablehook

    def see_unraisable(dropped) -> None:  # in a callback of the garbage collector, for example
        if isinstance(dropped.exc_value, Interrupted):
            request.raise_again()
        else:
            report(dropped)

    sys.unraisablehook = see_unraisable
    for number in _SIGNALS:
        signal.signal(number, request.handle)
    try:
        code = main()
    except BaseException:
        if not (request and request.may_end):
            raise
        code = EXIT_STOPPED
    if request and request.may_end:  # whatever a library made of the interruption
        code = EXIT_STOPPED
    request.finish(code)
    return code


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_if_deaf(reader: int, request: StopRequest) -> None:
    """Ends the process some time after a signal that its main thread does not see.

    Python handles a signal when the main thread is between two of its instructions; compilation and
    communication can take minutes.
    """
    came = 0
    while number := os.read(reader, 1)[0]:
        came += 1
        time.sleep(_PATIENCE)
        if request.may_end:
            if not request:
                request.note(number)
            os._exit(EXIT_STOPPED)
        if came > 1:
            os._exit(128 + number)
