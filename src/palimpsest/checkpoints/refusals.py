"""Whatever transformers raises about a model's files becomes one error that says which file, and which field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from palimpsest.errors import ModelError, PalimpsestError

_LONGEST = 400
_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")


@contextmanager
def refused_by_transformers(
    name: str,
    *,
    where: str,
    what: str,
    remedy: str | None = None,
    field: Callable[[], str | None] = lambda: None,
    config: str | None = None,
) -> Iterator[None]:
    """Inside the block, an exception of any kind becomes a `ModelError`.

    Arguments:
        name: what the user called the model.
        where: the file, or the folder, that is being read.
        what: what of it is being read.
        remedy: what to do when the exception itself does not say.
        field: finds the field at fault, if one can be told; called only after an exception.
        config: the file that the field is in, where that is not `where`.
    """
    try:
        yield
    except PalimpsestError:
        raise
    except Exception as error:  # a file can make transformers and what is under it raise anything
        culprit = field()
        if is_about_memory(error):
            remedy = "check the sizes in config.json; or take a smaller dtype (--dtype bfloat16) or a device map"
        elif isinstance(error, ImportError):
            remedy = "install the package that is named"
        elif remedy is None:
            remedy = "copy the model again" if Path(name).exists() else "check the name, and the network"
        raise ModelError(
            f"The model {name!r} could not be loaded.",
            expected=f"a model whose {what} transformers can read",
            found=said_by(error),
            where=f"{config or where}, field {culprit}" if culprit else where,
            remedy=remedy,
        ) from error


def said_by(error: BaseException) -> str:
    """An exception in one line; its kind too, where its own words are not a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines[0] if lines else "")
    if (
        not isinstance(error, OSError | ImportError)
        and " " not in text
        or isinstance(error, TypeError | AttributeError)
    ):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def is_about_memory(error: BaseException) -> bool:
    """Whether there was not enough memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in _MEMORY)


def field_at_fault(config: Mapping[str, Any], build: Callable[[dict[str, Any]], object]) -> str | None:
    """The one field of a config without which `build` succeeds; `None` if there is none or several are wrong.

    Arguments:
        config: the fields.
        build: makes something of them and raises as long as the field at fault is there.
    """
    try:
        build(dict(config))
    except Exception:  # noqa: S110 - the config is at fault: its fields are tried one by one
        pass
    else:
        return None
    for name, value in config.items():
        try:
            build({key: other for key, other in config.items() if key != name})
        except Exception:  # noqa: S112 - another field's fault, or this one's absence is one: the next is tried
            continue
        return f"{name} = {value!r}"[:_LONGEST]
    return None
