"""Where files may be: asked before anything is computed, so that nothing is lost to a bad path afterwards."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from palimpsest.errors import DataError, OutputError, PalimpsestError, some_of
from palimpsest.files.reading import said, shown_path

_ANOTHER_NAME = "choose another name, or remove it first"


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder; as it is if there is no such home.

    Raises `DataError` for a name that no file can have.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        found = Path(path)
    require_possible(found, DataError)
    return found


def cache_folder() -> Path | None:
    """`$PALIMPSEST_CACHE`, else `palimpsest` in `$XDG_CACHE_HOME`, else `~/.cache/palimpsest`; `None` without home."""
    chosen = os.environ.get("PALIMPSEST_CACHE")
    if chosen:
        return expanded(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "palimpsest"
    except RuntimeError:
        return None


def require_possible(path: Path, kind: type[PalimpsestError]) -> None:
    """Raises an error of this kind for a name that no file can have, such as one of more than 255 bytes."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise kind(
                "No file can have this name.",
                expected="a name of at most 255 bytes, without a NUL, in a path of at most 4,096",
                found=said(error),
                where=_shortened(path),
                remedy="check the path, or choose a shorter name",
            ) from error


def require_absent(path: Path, *, overwrite: bool = False, remedy: str = _ANOTHER_NAME) -> None:
    """Raises `OutputError` when `path` cannot be written: asked before any computing starts.

    Arguments:
        path: a file or folder to be.
        overwrite: whether a file of that name may be replaced; a folder never is.
        remedy: what to do about one that exists.
    """
    require_possible(path, OutputError)
    # os.path, not pathlib: a folder that may not be searched is no error here.
    if os.path.lexists(path) and (not overwrite or path.is_dir()):
        raise OutputError(
            "The output exists already.",
            expected="a path that does not exist yet",
            found=f"{'a folder' if path.is_dir() else 'a file'} of that name",
            where=shown_path(path),
            remedy=remedy,
        )
    require_writable(path)


def require_apart(*outputs: Path | None) -> None:
    """Raises `OutputError` where two outputs of one command have one place, or one lies inside the other."""
    given = [Path(os.path.abspath(one)) for one in outputs if one is not None]
    for index, first in enumerate(given):
        for second in given[index + 1 :]:
            if first.is_relative_to(second) or second.is_relative_to(first):
                raise OutputError(
                    "Two outputs have the same place.",
                    expected="a path of its own for each, none inside another",
                    found=f"{shown_path(first)} and {shown_path(second)}",
                    remedy=_ANOTHER_NAME,
                )


def require_replaceable(path: Path, names: Collection[str]) -> None:
    """Raises `OutputError` unless `path` is free, or a folder that holds nothing but `names`."""
    require_writable(path)
    place = path.resolve()
    if Path.cwd().is_relative_to(place):
        raise OutputError(
            "The current folder cannot be replaced.",
            expected="another folder than the working folder and those around it",
            found=str(place),
            where=shown_path(path),
            remedy="choose another name",
        )
    if os.path.lexists(path):
        others = sorted(one.name for one in path.iterdir() if one.name not in names) if path.is_dir() else [path.name]
        if others:
            raise OutputError(
                "The existing output was not made by this command, so it is not overwritten.",
                expected=f"a folder that is empty or holds only {', '.join(names)}",
                found=f"a folder with {some_of(others)}" if path.is_dir() else "a file",
                where=shown_path(path),
                remedy=_ANOTHER_NAME,
            )


def require_writable(path: Path) -> None:
    """Raises `OutputError` where nothing can be written at `path`: tried with a file that has no name or is gone."""
    require_possible(path, OutputError)
    try:
        place = Path(os.path.abspath(path)).parent
    except FileNotFoundError as error:
        raise OutputError(
            "The current folder no longer exists.",
            expected="a working folder, or a path that begins with /",
            found="a folder that was removed",
            where=shown_path(path),
            remedy="change to a folder that is there: cd /some/folder",
        ) from error
    while not os.path.exists(place):
        place = place.parent
    found = None
    if not place.is_dir():
        found = f"{place} is a file"
    elif not os.access(place, os.W_OK | os.X_OK):
        found = f"{place} is a folder without that permission"
    else:
        # Permissions are not all: the file system may be read-only, full, or none that one can write to.
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            found = f"{place}: {said(error)}"
    if found:
        raise OutputError(
            "The output cannot be written there.",
            expected="a folder that may be written to",
            found=found,
            where=shown_path(path),
            remedy="choose a folder you may write to",
        )


@contextmanager
def hold(file: Path) -> Iterator[None]:
    """Inside the block no other run is at work in a folder: this process holds its lock, which ends with the process.

    Arguments:
        file: the lock's, in the folder; both are made where they are missing.

    Raises `OutputError` when another process holds it, and when the disk refuses.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    except OSError as error:
        raise OutputError(
            "The output cannot be written there.",
            expected="a folder that may be written to",
            found=said(error),
            where=shown_path(file.parent),
            remedy="choose a folder you may write to",
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                "Another run is at work in this folder.",
                expected="one run at a time in a folder",
                found="its lock is held",
                where=shown_path(file.parent),
                remedy="wait for it, stop it, or choose another --out",
            ) from error
        yield


@contextmanager
def taking_turns(file: Path) -> Iterator[None]:
    """Inside the block no other process is inside one for the same file or folder; waits its turn.

    Makes the folder that it lies in, and a lock beside it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def put_aside(file: Path) -> None:
    """Gives a damaged file another name, where that can be done, so that its place is free."""
    with suppress(OSError):
        file.replace(file.with_name(file.name + ".damaged"))


def _shortened(path: Path) -> str:
    text = shown_path(path)
    return text if len(text) <= 2 * 80 else f"{text[:80]}... ({len(text)} characters)"
