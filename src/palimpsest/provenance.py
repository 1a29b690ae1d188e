"""Where a result came from: versions, hardware, peak memory, and one way to hash values and files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from palimpsest.files import require_regular

PACKAGES = ("palimpsest-lm", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
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
    """Processor, cores, memory in bytes; if torch is loaded also its instruction set, threads and CUDA device.

    A limit that the environment sets on the instructions of torch's libraries is named too.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        facts["instruction_set"] = torch.backends.cpu.get_cpu_capability()
        facts |= {name.lower(): os.environ[name] for name in _LIMITS if name in os.environ}
        if torch.cuda.is_available():
            facts["cuda_device"] = torch.cuda.get_device_name()
    return facts


@functools.cache
def _processor() -> str:
    """Returns the processor's name; empty if it is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


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


def digest(value: object) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises `OSError` and `ValueError` as `files.content_of` does."""
    require_regular(path)
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
