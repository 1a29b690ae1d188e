"""Texts of data sets on the Hugging Face hub, and what stands for them where the hub is out of reach."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.errors import ConfigError, DataError
from palimpsest.statistics.text import Text

_PROBE_SECONDS = 5.0
_SHUFFLED_AT_ONCE = 1000


class HubText(Text):
    """Texts of a data set on the Hugging Face hub, streamed in a random order that follows from the seed.

    Another version of the package `datasets` may draw another order from it: another sample, of the same text.

    Arguments:
        dataset: owner/name; or a folder in the layout of a hub data set.
        subset: its configuration.
        split: its split.
        column: the column that holds the text.
        revision: a commit, to be sure that the data set has not changed since.
        seed: of the order.

    Needs the package `datasets`.
    """

    def __init__(
        self,
        dataset: str,
        subset: str | None = None,
        *,
        split: str = "train",
        column: str = "text",
        revision: str | None = None,
        seed: int = 1,
    ) -> None:
        self.name = f"data set {dataset!r}" + (f", subset {subset!r}" if subset else "")
        self.dataset, self.subset, self.split = dataset, subset, split
        self.column, self.revision, self.seed = column, revision, seed

    def identity(self) -> dict[str, Any]:
        names = ("dataset", "subset", "split", "column", "revision", "seed")
        return {"kind": "hub", "shuffled_at_once": _SHUFFLED_AT_ONCE, **{name: getattr(self, name) for name in names}}

    @cached_property
    def problem(self) -> ConfigError | DataError | None:
        """Why it cannot be read, found out in seconds, without the retries of a download; `None` where it can."""
        if importlib.util.find_spec("datasets") is None:
            return self._without_package()
        if Path(self.dataset).exists():
            return None
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(self.dataset, revision=self.revision, timeout=_PROBE_SECONDS)
        # The hub's client lets its transport's errors through, which share no base with those of the system.
        except Exception as error:
            return self._out_of_reach(error)
        return None

    def texts(self) -> Iterator[str]:
        if self.problem is not None:
            raise self.problem
        rows = self._open()
        for row in rows:
            if self.column not in row:
                raise DataError(
                    f"The data set has no column {self.column!r}.",
                    expected="a column of texts",
                    found=f"columns {', '.join(row)}",
                    where=self.name,
                )
            yield str(row[self.column])

    def _open(self) -> Iterator[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise self._without_package() from error
        try:
            stream = datasets.load_dataset(
                self.dataset, self.subset, split=self.split, revision=self.revision, streaming=True
            )
            yield from stream.shuffle(seed=self.seed, buffer_size=_SHUFFLED_AT_ONCE)
        # The library lets through what its transports raise: errors of the network, the disk, and of itself.
        except (OSError, ValueError, RuntimeError) as error:
            raise self._out_of_reach(error) from error

    def _without_package(self) -> ConfigError:
        return ConfigError(
            "Reading a data set on the hub needs another package.",
            expected="the package `datasets`",
            found="it is not installed",
            where=self.name,
            remedy="pip install 'palimpsest-lm[hub]'; or leave the option text out for the model's own writing, or"
            " name a local file: text = notes.txt",
        )

    def _out_of_reach(self, error: Exception) -> DataError:
        return DataError(
            "The text cannot be read from the hub.",
            expected="the data set, over the network",
            found=f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}",
            where=self.name,
            remedy="check the name and the network; or leave the option text out for the model's own writing, or name"
            " a local file: text = notes.txt",
        )
