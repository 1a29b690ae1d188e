"""Commands run in this process, and the kinds of things that they read."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from palimpsest.cli import main


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in arguments])
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Kind:
    """Something that is read, and can be damaged.

    Arguments:
        source: it, whole; `None` where a command's own words are damaged.
        commands: what reads it; `IT` stands for the damaged copy, `OUT` for an output that is not there yet.
        is_changed: commands go on with it in place, or put what is damaged aside; anything else stays as it is.
        name: of the copy; left out, `it` with the source's ending.
        environment: variables, with `IT` for the copy.
        reader: what is given the words instead of the command line.
    """

    source: Path | None
    commands: tuple[tuple[str, ...], ...]
    is_changed: bool = False
    name: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    reader: Callable[..., Result] | None = None


def words(command: tuple[Any, ...], it: Path, out: Path) -> list[str]:
    """A command with its places filled in."""
    named = {"IT": str(it), "OUT": str(out)}
    # A place by itself, a file in it, or as the value of an option: `IT`, `IT/edited.gguf`, `corpus=IT`.
    parts = [str(one).rpartition("=") for one in command]
    filled = []
    for name, equals, value in parts:
        place, slash, file = value.partition("/")
        filled.append(f"{name}{equals}{named.get(place, place)}{slash}{file}")
    return filled
