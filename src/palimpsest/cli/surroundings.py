"""The command line in bad surroundings: an output that is closed, full or not UTF-8, and signals that come twice."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

_PATIENCE = 3.0
"""Seconds in which what is half-written can be removed; an interrupt that comes later interrupts that as well."""


class Output:
    """A stream that nothing fails at: what cannot be written is lost, and that is known afterwards.

    A command that has made its patch must not end with an error because the answer could not be shown. A character that
    the stream cannot hold is written as an escape.

    Arguments:
        stream: `sys.stdout` or `sys.stderr`; `None` where it was closed before the program began.
    """

    def __init__(self, stream: Any) -> None:
        self.failure: str | None = None
        """Why something was lost; not where a reader simply had enough, as `head` has."""
        self.made: list[str] = []
        """What the command has written elsewhere; see `terminal.wrote`."""
        self._stream = stream
        if stream is None:
            # The file that is opened next must not take the stream's number and get what libraries print there.
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as the program
            self.failure = "it is closed"

    def write(self, text: str) -> int:
        """Writes text, as far as that can be done."""
        if not isinstance(text, str):
            raise TypeError(f"a text is written, not {type(text).__name__}")
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Writes what waits to be written, as far as that can be done."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    @property
    def encoding(self) -> str:
        """The stream's."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def is_whole(self) -> bool:
        """Whether every character can be written."""
        return self.encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf16", "utf32")

    def __getattr__(self, name: str) -> Any:
        # Whoever writes to the bytes below would go round what is promised here.
        if name in ("buffer", "_stream"):
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self.failure = self.failure or error.strerror or str(error)
        # What still waits in the buffer would fail once more when the program ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


WAITING = {"GOMP_SPINCOUNT": "1000"}
"""How long OpenMP's threads are awake while they wait for each other; read once, when torch is imported.

The default, some milliseconds, is worth a sixth on an idle machine. On one with other work each wait is for a thread
that has no core, and an edit by ROME takes 18 seconds there instead of 4 (docs/speed.md).
"""


def share_the_cores() -> None:
    """Sets `WAITING`, unless the environment says how OpenMP's threads wait."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.update(WAITING)


@contextlib.contextmanager
def safe_output() -> Iterator[Output]:
    """Inside the block stdout and stderr are `Output`; yields that of stdout."""
    former = sys.stdout, sys.stderr
    given: Any = Output(former[0]), Output(former[1])
    sys.stdout, sys.stderr = given
    try:
        yield given[0]
    finally:
        for one in given:
            one.flush()
        sys.stdout, sys.stderr = former


@contextlib.contextmanager
def heeding_signals(*, is_program: bool) -> Iterator[None]:
    """Inside the block a first signal ends the command as an exit does, so that half-written output is removed.

    Further ones, which people send when it takes long and shells send to all at once, are passed over for `_PATIENCE`
    seconds, so that they do not end the removing.

    Arguments:
        is_program: nothing comes after the block but the end of the process: late signals are passed over there too.
    """
    seen: list[float] = []

    def leave(number: int, frame: FrameType | None) -> None:
        # A signal that comes before the handler of an earlier one has begun is handled inside that one, which goes on.
        if frame is not None and frame.f_code is leave.__code__:
            return
        if seen and time.monotonic() - seen[-1] < _PATIENCE:
            return
        seen.append(time.monotonic())
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    former: dict[int, Any] = {}
    # A launcher's processes are ended by it: one may be waiting for another, where no exit is heard.
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", *(("SIGTERM", "SIGHUP") if is_alone else ())):
            number = getattr(signal, name, None)
            # What someone has set, such as nohup, stays.
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                former[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_IGN if seen and is_program else handler)


def leave_at_once(code: int) -> NoReturn:
    """Ends the process without waiting for its threads: one that is inside torch while the interpreter is taken down
    would abort it.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Inside the block nobody looks for garbage: importing torch and transformers makes 600,000 objects that stay, and
    going through them again and again took a fifth of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
