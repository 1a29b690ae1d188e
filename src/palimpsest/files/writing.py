"""One way to write a file of ours: a draft, forced to the disk, renamed, and the folder forced out as well.

So a kill, a full disk or a power cut leaves the former file or the whole new one. The error that is raised is the first
one: what cleaning up runs into is not told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from palimpsest.errors import OutputError, PalimpsestError
from palimpsest.files.places import require_absent, require_replaceable
from palimpsest.files.reading import said, shown_path

_LONGEST = 60


@contextlib.contextmanager
def new_folder(path: Path, *, replacing: Collection[str] | None = None) -> Iterator[Path]:
    """A folder that appears complete or not at all.

    Yields a temporary folder beside `path`; when the block ends well it takes the name `path`, when it raises
    (also on an interrupt or a full disk) it is removed. One that a killed process left behind is removed by the next
    to write `path`. Files and folders get the permissions of the umask.

    Arguments:
        path: its name.
        replacing: names that a former folder of this name may hold; left out, there must be none.

    Raises `OutputError` when `path` exists and may not be replaced, or when the disk refuses.
    """

    def check() -> None:
        if replacing is None:
            require_absent(path)
        else:
            require_replaceable(path, replacing)

    check()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_drafts(path)
        draft = Path(tempfile.mkdtemp(prefix=f"{_draft_prefix(path)}{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise refused(path, error) from error
    try:
        yield draft
        _open_up(draft)
        _force_out(draft)
        check()
        _put_in_place(draft, path)
        force_out(path.parent)
    except PalimpsestError:
        raise
    except Exception as error:
        if _is_of_the_disk(error):
            raise refused(path, error) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all, instead of a former one of that name.

    Yields the path of a draft beside it. Raises `OutputError` when the disk refuses.
    """
    draft = path.with_name(f"{_draft_prefix(path)}{os.getpid()}-file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_drafts(path)
        yield draft
        _open_up(draft)
        force_out(draft)
        draft.replace(path)
        force_out(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears complete or not at all. Raises `OutputError` when the disk refuses."""
    with new_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: object, *, indent: int | None = None) -> None:
    """Writes a JSON file as `write_text` does; see `to_json`."""
    write_text(path, to_json(value, indent=indent) + "\n")


def append(path: Path, text: str) -> None:
    """Adds text to the end of a file and forces it to the disk. Raises `OSError` when the disk refuses."""
    with path.open("ab") as stream:
        stream.write(text.encode("utf-8", "replace"))
        stream.flush()
        os.fsync(stream.fileno())


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON that `reading.parse_json` reads back: numbers that are not finite are null, half characters are `?`."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_with_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return text.encode("utf-8", "replace").decode()


def force_out(path: Path) -> None:
    """Forces a file, or a folder's list of names, to the disk. Raises `OSError` when the disk refuses a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # A folder that one may write to and not read cannot be forced out; its files have been.
        if path.is_dir():
            return
        raise
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(path: Path, error: Exception) -> OutputError:
    """The error for a disk that refuses."""
    return OutputError(
        "Writing failed; nothing was left behind.",
        expected="room and permission to write",
        found=said(error),
        where=shown_path(path),
        remedy="free some space or choose another place, then run it again",
    )


def _with_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short_name(name: str) -> str:
    """A name that stays below 255 bytes with something added to it: itself, or a digest of it."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _draft_prefix(path: Path) -> str:
    # A process number means something on its own machine only.
    return f".{short_name(path.name)}-draft-{short_name(platform.node() or 'here')}-"


def _remove_stale_drafts(path: Path) -> None:
    """Removes drafts of `path` whose process, on this machine, is no more."""
    prefix = _draft_prefix(path)
    for name in os.listdir(path.parent):
        process = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and process.isdigit() and not _is_running(int(process)):
            left = path.parent / name
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _open_up(draft: Path) -> None:
    """Gives a draft, and everything in it, the permissions that new files and folders have."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (draft, *draft.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _force_out(folder: Path) -> None:
    """Forces everything in a folder to the disk, the folder last."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            force_out(path)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a write failed; libraries written in Rust say so in the text of an exception of any kind."""
    text = str(error).lower()
    return isinstance(error, OSError) or "os error" in text or "no space left" in text


def _put_in_place(draft: Path, path: Path) -> None:
    if not path.exists():
        draft.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{short_name(path.name)}-old-", dir=path.parent))
    try:
        path.rename(aside / "old")
        try:
            draft.rename(path)
        except BaseException:
            (aside / "old").rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
