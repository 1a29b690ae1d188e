"""Files that end: a named pipe, a device or a socket instead of one is never read, for it may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def require_regular(file: str | Path) -> None:
    """Raises `ValueError` for a named pipe, a device or a socket, `OSError` where there is nothing; folders pass."""
    mode = os.stat(file).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        found = next((name for is_it, name in kinds if is_it(mode)), "a device")
        raise ValueError(f"{found} instead of a file")


def require_readable(file: str | Path) -> None:
    """Raises what `require_regular` does, and `PermissionError` for a file that this user may not read; folders pass.

    safetensors says of such a file that it is not there.
    """
    require_regular(file)
    if not os.path.isdir(file):
        with open(file, "rb"):
            pass


def remedy_of(error: BaseException, otherwise: str | None) -> str | None:
    """Returns advice for a file that could not be read; another copy does not help without the right to read."""
    return "give this user the right to read it, as by chmod u+r" if isinstance(error, PermissionError) else otherwise


def content_of(file: Path) -> bytes:
    """The bytes of a file. Raises `OSError`, and `ValueError` for what `require_regular` refuses."""
    require_regular(file)
    return file.read_bytes()
