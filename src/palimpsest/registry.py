"""Names to things: methods, data sets, scorings, ... Built-ins and third parties come through the same door.

A row says where its object lives (`"package.module:attribute"`) and is only imported when it is asked for, so
that listing the names costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from palimpsest.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Row:
    """One registered name.

    Arguments:
        target: `"package.module:attribute"`.
        summary: one line for `palimpsest list`.
        options: options that this name fixes: variants of one method are rows, not classes.
        source: the paper or specification it follows.
    """

    target: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def load(self) -> Any:
        """Imports the object. Raises `ConfigError` if there is none."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"The registered {attribute or self.target!r} cannot be imported.",
                expected="an object at package.module:attribute",
                found=f"{type(error).__name__}: {error}",
                where=self.target,
            ) from error


@cache
def plugins(group: str) -> EntryPoints:
    """The entry points of a group: looked for once, since the search opens a file for every installed package."""
    return entry_points(group=group)


class Registry:
    """A read-only table of rows, extended by the entry points of a group.

    Arguments:
        what: what a row is, for messages: `"method"`.
        group: the entry-point group; each entry point names a function that returns `{name: Row}`.
        rows: the built-in rows.

    An entry point may add names. It may not take over a built-in one: that raises `ConfigError`.
    """

    def __init__(self, what: str, group: str, rows: Mapping[str, Row]) -> None:
        self.what = what
        self.group = group
        self._built_in = dict(rows)

    def rows(self) -> dict[str, Row]:
        """All rows by name, sorted."""
        merged = dict(self._built_in)
        for point in plugins(self.group):
            for name, row in self._added(point).items():
                if name in merged:
                    raise ConfigError(
                        f"The {self.what} {name!r} is registered twice.",
                        found=f"{merged[name].target} and {row.target}",
                        where=f"entry point {point.name!r} of group {self.group!r}",
                        remedy="give the plugin's own another name",
                    )
                merged[name] = row
        return dict(sorted(merged.items()))

    def _added(self, point: EntryPoint) -> Mapping[str, Row]:
        """The rows of a plugin, whose mistakes are named as its own."""
        where = f"entry point {point.name!r} = {point.value!r} of group {self.group!r}"
        remedy = f"update or uninstall {point.dist.name}" if point.dist else "mend the entry point"
        try:
            rows = point.load()()
        except Exception as error:
            raise ConfigError(
                "A plugin cannot be loaded.", found=f"{type(error).__name__}: {error}", where=where, remedy=remedy
            ) from error
        if not isinstance(rows, Mapping) or not all(isinstance(row, Row) for row in rows.values()):
            raise ConfigError(
                "A plugin returns no rows.", expected="{name: Row}", found=repr(rows)[:80], where=where, remedy=remedy
            )
        return rows

    def __getitem__(self, name: str) -> Row:
        rows = self.rows()
        if name not in rows:
            raise unknown_name(self.what, name, rows)
        return rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows())

    def __contains__(self, name: object) -> bool:
        return name in self.rows()
