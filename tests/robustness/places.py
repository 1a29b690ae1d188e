"""Damage to a file as a whole: its bytes, its encoding, and what stands in its place. See `damage`."""

from __future__ import annotations

import gzip
import os
import random
import struct
from pathlib import Path

SPECIAL = ("fifo", "endless")
BYTES = (
    "cut", "flip", "empty", "blank", "mark", "invalid", "zeros", "folder", "gone", "more", "doubled", "packed", "utf16",
    "utf16 unmarked", "utf32", "latin", "cr", "crlf", "blank lines", "nul", "long line", "zip", "fifo", "loop",
    "nowhere",
    "endless", "denied", "other", "bidi", "no end", "backwards", "page", "pointer", "control",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def draw_bytes(rng: random.Random) -> list[object]:
    """A damage to any file."""
    return ["bytes", rng.choice(BYTES), rng.random()]


def draw_number(file: Path, rng: random.Random) -> list[object]:
    """Another number somewhere in a binary file; the first bytes, which say what follows, are as likely as all."""
    size = max(1, file.stat().st_size)
    near = rng.choice((32, 256, 4096, size))
    return ["number", rng.randrange(min(size, near)), rng.choice(sorted(WIDTHS)), rng.choice(NUMBERS)]


def to_number(file: Path, at: int, width: int, value: int) -> None:
    """Writes a number into a file."""
    content = bytearray(file.read_bytes())
    content[at : at + width] = struct.pack(WIDTHS[width], value % (1 << 8 * width))
    file.write_bytes(bytes(content))


def to_bytes(file: Path, what: str, share: float) -> None:
    """Does what a name in `BYTES` says, at a share of the file's length."""
    if what in ("folder", "gone", "fifo", "loop", "nowhere", "endless"):
        file.unlink()
        links = {"loop": file.name, "nowhere": "no-such-file", "endless": "/dev/zero"}
        if what == "folder":
            file.mkdir()
        elif what == "fifo":
            os.mkfifo(file)
        elif what in links:
            file.symlink_to(links[what])
        return
    if what == "denied":
        file.chmod(0)
        return
    content = file.read_bytes()
    file.write_bytes(_made(content, what, int(share * len(content))))


def _made(content: bytes, what: str, at: int) -> bytes:
    text = content.decode("utf-8", "replace")
    encodings = {"utf16": "utf-16", "utf16 unmarked": "utf-16-le", "utf32": "utf-32"}
    if what in encodings:
        return text.encode(encodings[what], "replace")
    inserted = {
        "invalid": b"\xff\xc3\x28", "nul": b"\0", "bidi": "\u202e\u200b\u2028".encode(), "control": b"\x1b[31m\x07\x08",
        "long line": b"x" * 3_000_000,
    }  # fmt: skip
    if what in inserted:
        return content[:at] + inserted[what] + content[at:]
    whole = {
        "cut": lambda: content[:at],
        "flip": lambda: content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] if content else b"\xff",
        "empty": lambda: b"",
        "blank": lambda: b" \n",
        "mark": lambda: b"\xef\xbb\xbf" + content,
        "zeros": lambda: b"\0" * len(content),
        "more": lambda: content + b"}]",
        "doubled": lambda: content + content,
        "packed": lambda: gzip.compress(content),
        "latin": lambda: content.replace(b"e", b"\xe9"),
        "cr": lambda: content.replace(b"\n", b"\r"),
        "crlf": lambda: content.replace(b"\n", b"\r\n"),
        "blank lines": lambda: content.replace(b"\n", b"\n\n \n"),
        "zip": lambda: b"PK\x03\x04" + content,
        "other": lambda: content.translate(bytes.maketrans(b",:[]{}", b";=()<>")),
        "no end": lambda: content.rstrip(b"]}\n"),
        "backwards": lambda: content[::-1],
        "page": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
    }
    return whole[what]()


def untangle(place: Path) -> None:
    """Gives back the permissions that were taken away, so that everything can be removed."""
    for path in [place, *place.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)
