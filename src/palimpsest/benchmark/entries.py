"""The tables of a recipe: models, data sets, protocols, methods, how options are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from palimpsest.config import Config

if TYPE_CHECKING:
    from palimpsest.evaluation import EditingProtocol

Axes = dict[str, list[Any]]
"""Option names, those inside another option with a dot (`learn_options.epochs`), each with the values to take."""


_WHOLE: dict[str, Any] = {"parameters": "all", "rank": 0, "spare": False, "stop_loss": 0.0}
"""Full fine-tuning, and every pass of it; the defaults of `ft` train some matrices, gently."""


class Preparation(Config):
    """Teaches a model the old answers of the facts that are edited, before anything else, by full fine-tuning
    (F-Learning, section 5.1).
    """

    learning_rate: float = Field(gt=0)
    epochs: int = Field(default=3, ge=1)
    """Passes over all facts."""
    options: dict[str, Any] = {}
    """Further options of the method `ft`, which teaches."""

    def method_options(self) -> dict[str, Any]:
        """What `ft` is given."""
        return {**_WHOLE, "learning_rate": self.learning_rate, "epochs": self.epochs, **self.options}


class ModelEntry(Config):
    """A model of the recipe; a text stands for `{name = text}`."""

    name: str
    """A hub id, a bundled model, or a folder, relative to the root."""
    label: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    chat: bool = False
    thinking: bool | int = False
    """Whether the model thinks before it answers, in a chat, or in how many tokens at most."""
    prepare: Preparation | None = None

    @field_validator("prepare", mode="before")
    @classmethod
    def _preparation(cls, given: Any) -> Any:
        return Preparation.parse(given, owner="`prepare` of a model") if isinstance(given, dict) else given


class DataEntry(Config):
    """A data set of the recipe; a text stands for `{name = text}`."""

    name: str
    """See `palimpsest list datasets`."""
    path: str | None = None
    """The file, relative to the root, or `hf://owner/name`, for data sets that are read from one."""
    label: str | None = None
    split: str = "test"
    skip: int = Field(default=0, ge=0)
    """Pass over the first N records."""
    first: int | None = Field(default=None, ge=1)
    """Use only the first N of the other records; the sample is drawn from these."""
    num_edits: int | None = Field(default=None, ge=1)
    """In place of the recipe's; a protocol's own goes before both."""
    one_per_subject: bool = False
    """Use only the first record of each subject."""
    known_to_model: bool = False
    """Draw only facts whose old answer the unedited model gives, by `palimpsest.answers`; see `known.py`."""
    choose_on: dict[str, str | int] = {}
    """Where options are chosen: what differs from this entry, such as `{split = "train"}` or `{path = FILE}`."""
    models: list[str] | None = None
    """Only on these, by label; on all when left out."""

    def for_choosing(self) -> DataEntry:
        """The entry that options are chosen on: other facts of the same kind, of the split `train` unless said."""
        changes = dict(self.choose_on) or {"split": "train"}
        differs = ", ".join(str(value) for value in changes.values())
        kept = self.model_dump(exclude={"choose_on", "num_edits"}, exclude_unset=True)
        return DataEntry.parse(
            {**kept, **changes, "label": f"{label_of(self)} ({differs})"}, owner=f"`choose_on` of {label_of(self)!r}"
        )


class ProtocolEntry(Config):
    """A protocol of the recipe; a text stands for `{name = text}`."""

    name: str
    batch_size: int | None = Field(default=None, ge=1)
    checkpoints: list[int] | None = None
    num_edits: int | None = Field(default=None, ge=1)
    """In place of the recipe's."""

    def made(self) -> EditingProtocol:
        """The evaluation's protocol. Raises `ConfigError` for options that it does not have."""
        from palimpsest.evaluation import make_protocol

        points = tuple(self.checkpoints) if self.checkpoints else None
        return make_protocol(self.name, batch_size=self.batch_size, checkpoints=points)


class ChoiceRule(Config):
    """How one candidate of a row's `grid` is chosen, on facts that are not reported."""

    by: list[str] = Field(default=["reliability", "generality", "locality"], min_length=1)
    """Metrics whose harmonic mean is maximised; `locality` stands for the plain mean of its kinds."""
    scoring: str = "generate"
    at_least: dict[str, float] = {}
    """Metrics that must reach a share from 0 to 1; where no candidate reaches them, they bind none."""
    tie: float = Field(default=0.005, ge=0)
    """Candidates that are this close to the best are equally good: the one that stands first in the grid is taken."""
    protocol: ProtocolEntry = ProtocolEntry(name="single")
    num_edits: int | None = Field(default=20, ge=1)
    seed: int = 7

    @field_validator("protocol", mode="before")
    @classmethod
    def _protocol(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        return ProtocolEntry.parse(given, owner="`protocol` of `choose`") if isinstance(given, dict) else given

    def criterion(self) -> str:
        """The criterion in words."""
        mean = f"harmonic mean of {', '.join(self.by)}" if len(self.by) > 1 else self.by[0]
        bounds = "".join(f", {name} at least {value:g}" for name, value in self.at_least.items())
        return f"{mean} ({self.scoring}){bounds}"


class MethodEntry(Config):
    """A method of the recipe: a row of its tables; a text stands for `{name = text}`."""

    name: str
    label: str | None = None
    preset: str = "auto"
    options: dict[str, Any] = {}
    options_of: dict[str, str] = {}
    """Options that are those of another row, given and chosen: `{learn_options = "ft"}`. `options` go before them."""
    sweep: Axes | list[Axes] = {}
    """Makes a row of every combination of these values, or of each of several tables."""
    swept: dict[str, Any] = {}
    """The values of a row that `sweep` made; not to be written by hand."""
    grid: Axes | list[Axes] = {}
    """Candidates: every combination of these values, or of each of several tables; see `choose`."""
    choose: ChoiceRule | None = None
    """In place of the recipe's."""
    models: list[str] | None = None
    """Only on these, by label; on all when left out."""
    datasets: list[str] | None = None
    """Only on these, by label."""
    protocols: list[str] | None = None
    """Only under these, by name."""

    @field_validator("choose", mode="before")
    @classmethod
    def _rule(cls, given: Any) -> Any:
        return ChoiceRule.parse(given, owner="`choose` of a method") if isinstance(given, dict) else given

    @field_validator("sweep", "grid")
    @classmethod
    def _values(cls, given: Any) -> Any:
        for axes in given if isinstance(given, list) else [given]:
            if empty := [name for name, values in axes.items() if not values]:
                raise ValueError(f"at least one value of {empty[0]!r}")
        return given

    def is_wanted(self, model: ModelEntry, data: DataEntry, protocol: ProtocolEntry) -> bool:
        """Whether the restrictions leave it in this place."""
        return self.is_wanted_on(model, data) and (self.protocols is None or protocol.name in self.protocols)

    def is_wanted_on(self, model: ModelEntry, data: DataEntry) -> bool:
        """Whether the restrictions leave it on this model and data set."""
        restrictions = ((label_of(model), self.models), (label_of(data), self.datasets))
        return all(names is None or name in names for name, names in restrictions)


def label_of(entry: ModelEntry | DataEntry | MethodEntry) -> str:
    """Returns an entry's name in tables."""
    return entry.label or entry.name


def identity_of(entry: Config, *left_out: str) -> Mapping[str, Any]:
    """Returns the part of an entry that determines a result, JSON-ready.

    Fields that came to recipes later count only where they are set, so that units measured before keep their addresses.
    """
    later = {"prepare", "skip", "thinking", "one_per_subject", "known_to_model"}
    # A unit has its number of edits besides.
    whole = entry.model_dump(mode="json", exclude={*left_out, *later, "num_edits"})
    return {**whole, **entry.model_dump(mode="json", include=later, exclude_defaults=True)}
