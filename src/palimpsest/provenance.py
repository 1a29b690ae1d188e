"""Where a result came from: versions, hardware, peak memory, and one way to hash and to write files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsest.errors import OutputError, PalimpsestError

PACKAGES = ("palimpsest-lm", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
_ANOTHER_NAME = "choose another name, or remove it first"
_SHOWN = 3
_WHOLE, _SAMPLE, _SAMPLES = 2**26, 2**20, 64


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in bytes, and the CUDA device if torch is loaded and has one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["cuda_device"] = torch.cuda.get_device_name()
    return facts


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_bytes() -> int:
    """Peak memory of this process so far; on a CUDA machine the device's peak instead."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def digest(value: Any) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """A short hash of what a file holds, or of a folder's files with their names.

    Of a file over 64 MiB it is made of the size and of samples from its beginning to its end, so that the weights of a
    large model cost no minutes. Hidden files and Markdown in a folder do not count.
    """
    if path.is_file():
        known = path.stat()
        return _sampled_digest(path, known.st_size, known.st_mtime_ns)
    names = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".md")
    return digest(
        [[str(name), content_digest(path / name)] for name in names if not any(part[0] == "." for part in name.parts)]
    )


@functools.lru_cache(maxsize=256)
def _sampled_digest(path: Path, size: int, _modified: int) -> str:
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= _WHOLE:
            found.update(stream.read())
        else:
            for part in range(_SAMPLES):
                stream.seek(part * (size - _SAMPLE) // (_SAMPLES - 1))
                found.update(stream.read(_SAMPLE))
    return found.hexdigest()[:16]


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
        raise _refused(path, error) from error
    try:
        yield draft
        _open_up(draft)
        check()
        _put_in_place(draft, path)
    except PalimpsestError:
        raise
    except Exception as error:
        if _is_of_the_disk(error):
            raise _refused(path, error) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears complete or not at all, in place of a former one of that name.

    Yields the path of a draft beside it. Raises `OutputError` when the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears complete or not at all. Raises `OutputError` when the disk refuses."""
    with new_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def require_absent(path: Path, *, overwrite: bool = False, remedy: str = _ANOTHER_NAME) -> None:
    """Raises `OutputError` when `path` cannot be written: asked before any computing starts.

    Arguments:
        path: a file or folder to be.
        overwrite: whether a file of that name may be replaced; a folder never is.
        remedy: what to do about one that exists.
    """
    # os.path, not pathlib: a folder that may not be searched is no error here.
    if os.path.exists(path) and (not overwrite or path.is_dir()):
        raise OutputError(
            "The output exists already.",
            expected="a path that does not exist yet",
            found=f"{'a folder' if path.is_dir() else 'a file'} of that name",
            where=str(path),
            remedy=remedy,
        )
    _require_writable(path)


def require_replaceable(path: Path, names: Collection[str]) -> None:
    """Raises `OutputError` unless `path` is free, or a folder that holds nothing but `names`."""
    place = path.resolve()
    if Path.cwd().is_relative_to(place):
        raise OutputError(
            "The folder you are in cannot be replaced.",
            expected="another folder than the working folder and those around it",
            found=str(place),
            where=str(path),
            remedy="choose another name",
        )
    if os.path.exists(path):
        others = sorted(one.name for one in path.iterdir() if one.name not in names) if path.is_dir() else [path.name]
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise OutputError(
                "What is there was not made by this command, so it is not overwritten.",
                expected=f"a folder that is empty or holds only {', '.join(names)}",
                found=f"a folder with {', '.join(others[:_SHOWN])}{more}" if path.is_dir() else "a file",
                where=str(path),
                remedy=_ANOTHER_NAME,
            )
    _require_writable(path)


def _require_writable(path: Path) -> None:
    place = Path(os.path.abspath(path)).parent
    while not os.path.exists(place):
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return
    raise OutputError(
        "The output cannot be written there.",
        expected="a folder that may be written to",
        found=f"{place} is " + ("a folder without that permission" if place.is_dir() else "a file"),
        where=str(path),
        remedy="choose a folder you may write to",
    )


def _draft_prefix(path: Path) -> str:
    # A process number means something on its own machine only.
    return f".{path.name}-draft-{platform.node() or 'here'}-"


def _remove_stale_drafts(path: Path) -> None:
    """Removes temporary folders for `path` whose process, on this machine, is no more."""
    prefix = _draft_prefix(path)
    for name in os.listdir(path.parent):
        process = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path.parent / name, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _open_up(folder: Path) -> None:
    """Gives everything in a temporary folder, and itself, the permissions that new files and folders have."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a write failed; libraries written in Rust say so in the text of an exception of any kind."""
    text = str(error).lower()
    return isinstance(error, OSError) or "os error" in text or "no space left" in text


def _put_in_place(draft: Path, path: Path) -> None:
    if not path.exists():
        draft.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    try:
        path.rename(aside / "old")
        try:
            draft.rename(path)
        except BaseException:
            (aside / "old").rename(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refused(path: Path, error: Exception) -> OutputError:
    return OutputError(
        "Writing failed; nothing was left behind.",
        expected="room and permission to write",
        found=getattr(error, "strerror", None) or str(error),
        where=str(path),
        remedy="free some space or choose another place, then run it again",
    )
