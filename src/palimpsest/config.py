"""The base of every configuration: frozen, strict, with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from palimpsest.errors import ConfigError, near_matches


class Config(BaseModel):
    """A set of options that change a result. Unknown ones are refused; nothing is guessed from strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, options: Mapping[str, Any], *, owner: str) -> Self:
        """Checks options and fills in defaults. Raises `ConfigError` with near matches for unknown ones.

        Arguments:
            options: option names and values.
            owner: whose options they are, for the message: `"method 'ft'"`.
        """
        try:
            return cls(**options)
        except ValidationError as failure:
            # A misspelt name first: the option that is then missing follows from it.
            first = min(failure.errors(), key=lambda error: error["type"] != "extra_forbidden")
            name = ".".join(str(part) for part in first["loc"]) or "(the whole)"
            if first["type"] == "extra_forbidden":
                last = name.rpartition(".")[2]
                close = [last] if last in cls.model_fields else near_matches(name, cls.model_fields)
                raise ConfigError(
                    f"The {owner} has no option {name!r}.",
                    expected=f"one of {', '.join(sorted(cls.model_fields))}",
                    found=f"{name} = {first['input']!r}",
                    remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else None,
                ) from failure
            if first["type"] == "missing":
                raise ConfigError(
                    f"The option {name!r} of the {owner} is missing.",
                    expected=name,
                    found=f"only {', '.join(options)}" if options else "no option at all",
                ) from failure
            raise ConfigError(
                f"The option {name!r} of the {owner} has an unusable value.",
                expected=first["msg"],
                found=repr(first["input"]),
                where=f"option {name}",
            ) from failure
