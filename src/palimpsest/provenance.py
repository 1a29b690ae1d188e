"""Where a result came from: versions, hardware, peak memory, and one way to hash and to write files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsest.errors import OutputError

PACKAGES = ("palimpsest-lm", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
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


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears complete or not at all.

    Yields a temporary folder beside `path`; when the block ends well it takes the name `path`, when it raises
    (also on an interrupt or a full disk) it is removed.

    Raises `OutputError` when `path` exists and `overwrite` is false, or when the disk refuses.
    """
    require_absent(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise _refused(path, error) from error
    try:
        yield draft
        draft.chmod(0o755)
        _put_in_place(draft, path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears complete or not at all. Raises `OutputError` when the disk refuses."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def require_absent(path: Path, *, overwrite: bool = False) -> None:
    """Raises `OutputError` when `path` exists already: asked before any computing starts."""
    if path.exists() and not overwrite:
        raise OutputError(
            "The output exists already.",
            expected="a path that does not exist yet",
            found=f"{'a folder' if path.is_dir() else 'a file'} of that name",
            where=str(path),
            remedy="choose another name, or remove it first",
        )


def _put_in_place(draft: Path, path: Path) -> None:
    if not path.exists():
        draft.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    path.rename(aside / "old")
    try:
        draft.rename(path)
    except OSError:
        (aside / "old").rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "Writing failed; nothing was left behind.",
        expected="room and permission to write",
        found=error.strerror or str(error),
        where=str(path),
        remedy="free some space or choose another place, then run it again",
    )
