"""A socket, and uvicorn on it until a signal says stop."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from palimpsest.errors import ConfigError
from palimpsest.files import said

_PATIENCE = 5


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Arguments:
        host: a name or a number.
        port: 0 for any that is free.
    """

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def open_socket(address: Address) -> socket.socket:
    """A socket that listens there. Raises `ConfigError` for a port in use and a host that is not this machine."""
    try:
        family, *_, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(place)
            # Taken from here on, though nobody is answered before the model has been read.
            found.listen(128)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError, OverflowError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise ConfigError(
            "The port is in use." if is_taken else "The endpoint cannot listen there.",
            expected="a free port of this machine",
            found=f"{address.host}:{address.port}: {said(error)}",
            where="--host, --port",
            remedy="choose another port, or --port 0 for any that is free",
        ) from error
    return found


def run(app: Any, listening: socket.socket, *, ready: Callable[[], None] = lambda: None) -> None:
    """Answers requests until SIGINT or SIGTERM; what is being written is then ended, and the socket closed."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # As uvicorn does it, but for raising the signal again: a stop that was asked for is no failure.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            former = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for one, handler in former.items():
                    signal.signal(one, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE)
    Server(config).run(sockets=[listening])
