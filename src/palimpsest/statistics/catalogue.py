"""Texts by name: those that come with the project, those of the hub, a file or a folder."""

from __future__ import annotations

from palimpsest.errors import ConfigError, DataError, near_matches
from palimpsest.files import expanded
from palimpsest.registry import Registry, Row
from palimpsest.statistics.hub_text import HubText
from palimpsest.statistics.text import FILE_ENDINGS, FileText, GivenText, Text
from palimpsest.world import build, neutral_text

TEXTS = Registry(
    "text",
    "palimpsest.texts",
    {
        "own": Row(
            "palimpsest.statistics.writing:OwnWriting",
            "what the model itself writes, sampled from its start token; the default",
        ),
        "wikipedia": Row(
            "palimpsest.statistics.hub_text:HubText",
            "English Wikipedia of November 2023, whole articles, from the hub",
            {"dataset": "wikimedia/wikipedia", "subset": "20231101.en"},
            "ROME and MEMIT took that of May 2020, EasyEdit takes this one",
        ),
        "wikitext": Row(
            "palimpsest.statistics.hub_text:HubText",
            "WikiText-103, paragraphs, from the hub",
            {"dataset": "Salesforce/wikitext", "subset": "wikitext-103-raw-v1"},
            "arXiv:1609.07843",
        ),
        "world": Row("palimpsest.statistics.catalogue:world_text", "the text that the bundled models were trained on"),
    },
)


def open_text(name: str, *, column: str = "text") -> Text:
    """A source of texts by what it is called: a name in `TEXTS`, a file or folder, or a data set on the hub.

    Arguments:
        name: `wikipedia`, `world`, ...; a path; or owner/name or owner/name:subset of a data set on the hub.
        column: where the text stands in a .jsonl record, a .parquet table or a data set that is not in `TEXTS`.

    Raises `DataError` for a path that does not exist, `ConfigError` for an unknown name. Reads nothing.
    """
    if name in TEXTS:
        row = TEXTS[name]
        source = row.load()(**row.options)
        if not isinstance(source, Text):
            raise ConfigError(f"The text {name!r} is not a text.", expected="a Text", found=type(source).__name__)
        return source
    path = expanded(name)
    if path.exists():
        return FileText(path, column=column)
    owner, slash, rest = name.partition("/")
    if slash and owner not in (".", "..", "~", "") and "/" not in rest and path.suffix not in FILE_ENDINGS:
        dataset, _, subset = name.partition(":")
        return HubText(dataset, subset or None, column=column)
    close = near_matches(name, TEXTS)
    raise DataError(
        f"There is no text {name!r}.",
        expected=f"{', '.join(TEXTS)}, a file or folder, or owner/name of a data set on the hub",
        found="no such file or name",
        remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else "check the path",
    )


def world_text() -> Text:
    """Ordinary world text for second moments, some 400,000 tokens of it; other lines than perplexity is measured on."""
    return GivenText("world", neutral_text(build(0), 20_000, seed=1))


def reachable(name: str, notes: list[str]) -> str:
    """The name of a text that only a preset asked for; `own`, with a note, where it is out of reach.

    Arguments:
        name: as for `open_text`.
        notes: where the note goes.
    """
    source = open_text(name) if name in TEXTS else None
    problem = source.problem if isinstance(source, HubText) else None
    if problem is None:
        return name
    notes.append(
        f"The preset's text {name!r} cannot be reached ({problem.found}), so what the model itself writes stands for"
        f" it. Name a text to choose another: text = notes.txt"
    )
    return "own"
