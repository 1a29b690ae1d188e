"""What no command may do, whatever it reads: run code of a folder, open a pickle, start a program, use the network."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any
from unittest import mock

import torch

NOBODY = 65534
SECONDS = 90


class TookTooLongError(BaseException):
    """A command went on for more than `SECONDS`."""


class Guard:
    """Watches this process; `seen` is what happened that must not.

    Arguments:
        place: the folder of the campaign, of which no code may run.
    """

    def __init__(self, place: Path) -> None:
        self.place = str(place)
        self.seen: list[str] = []
        self._is_on = False
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block everything is noted, and a command that does not end is ended."""
        self.seen.clear()
        former = signal.signal(signal.SIGALRM, self._ring)
        signal.alarm(SECONDS)
        self._is_on = True
        try:
            with mock.patch.object(torch, "load", self._load):
                yield
        finally:
            self._is_on = False
            signal.alarm(0)
            signal.signal(signal.SIGALRM, former)

    def _ring(self, _number: int, _frame: Any) -> None:
        raise TookTooLongError(f"more than {SECONDS} seconds")

    def _load(self, *given: Any, **_options: Any) -> Any:
        self.seen.append(f"torch.load({given[:1]})")
        raise RuntimeError("no pickle is opened here")

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event in ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            self.seen.append(f"{event} {given!r}"[:300])
        elif event == "socket.connect" and isinstance(given[1], tuple) and given[1][0] not in ("127.0.0.1", "::1"):
            self.seen.append(f"{event} {given[1]!r}")
        elif event == "exec" and isinstance(given[0], CodeType):
            file = given[0].co_filename
            if file.startswith(self.place) or "transformers_modules" in file:
                self.seen.append(f"code of {file}")


@contextlib.contextmanager
def without_rights(place: Path) -> Iterator[None]:
    """Inside the block this process may read and write only what anyone may; root may do everything otherwise."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (place, *place.parents):
        if str(folder).startswith(f"{tempfile.gettempdir()}/") or folder == place:
            folder.chmod(0o777)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def unblocking(place: Path) -> Iterator[list[Path]]:
    """Inside the block whoever waits at a named pipe below a place is let go after a while; yields where one waited."""
    waited: list[Path] = []
    pipes = [path for path in [place, *place.rglob("*")] if path.is_fifo()]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(20):
            for pipe in pipes:
                with contextlib.suppress(OSError):
                    # Opened for writing only where someone waits to read.
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                    waited.append(pipe)

    thread = threading.Thread(target=watch, daemon=True)
    if pipes:
        thread.start()
    try:
        yield waited
    finally:
        is_over.set()
