"""`list` shows what there is by name."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from palimpsest.cli import completing, inputs, terminal
from palimpsest.errors import unknown_name

EXAMPLES = (
    "palimpsest list methods",
    "palimpsest list datasets --json",
)
PANEL = terminal.LOOKING


def list_(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help=f"One of {', '.join(completing.TOPICS)}.",
            show_default=False,
            autocompletion=completing.topics,
        ),
    ],
    as_json: inputs.JsonOption = False,
) -> None:
    """List methods, models, data sets, metrics, protocols, presets, texts or the statistics in the cache."""
    if topic not in completing.TOPICS:
        raise unknown_name("topic", topic, completing.TOPICS)
    makers = (_methods, _models, _datasets, _metrics, _protocols, _presets, _texts, _statistics)
    rows = makers[completing.TOPICS.index(topic)]()
    if as_json:
        terminal.emit_json(rows)
    elif rows:
        terminal.print_table(tuple(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    else:
        terminal.say(f"There are no {topic}.")


def _methods() -> list[dict[str, Any]]:
    from palimpsest.methods import METHODS

    return [
        {"name": name, "summary": row.summary, "fixed options": dict(row.options), "source": row.source}
        for name, row in METHODS.rows().items()
    ]


def _models() -> list[dict[str, Any]]:
    from palimpsest.models.sites import architectures

    kinds = {"world": "decoder", "world-t5": "encoder-decoder"}
    bundled = [
        {"name": name, "kind": "bundled", "summary": f"a small {kind} that knows a small world"}
        for name, kind in kinds.items()
    ]
    families = [
        {
            "name": family.name,
            "kind": "family",
            "summary": f"any hub id or folder of type {', '.join(family.model_types)}"
            + "".join(f", {name} = {value}" for name, value in family.when.items()),
        }
        for family in architectures()
    ]
    return bundled + families


def _datasets() -> list[dict[str, Any]]:
    from palimpsest.datasets import DATASETS

    return [{"name": name, "summary": row.summary, "source": row.source} for name, row in DATASETS.rows().items()]


def _metrics() -> list[dict[str, Any]]:
    from palimpsest.evaluation import MEASURES, SCORINGS
    from palimpsest.report import METRICS

    kinds = [{"name": name, "kind": "metric", "summary": text} for name, text in METRICS.items()]
    return kinds + [
        {"name": name, "kind": registry.what, "summary": row.summary}
        for registry in (SCORINGS, MEASURES)
        for name, row in registry.rows().items()
    ]


def _protocols() -> list[dict[str, Any]]:
    from palimpsest.evaluation import PROTOCOLS

    return [{"name": name, "summary": row.summary} for name, row in PROTOCOLS.rows().items()]


def _presets() -> list[dict[str, Any]]:
    from palimpsest.methods import METHODS
    from palimpsest.methods.presets import presets

    return [
        {
            "method": name,
            "preset": preset.name,
            "match": dict(preset.match),
            "options": dict(preset.options),
            "source": preset.source,
        }
        for name in METHODS
        for preset in presets(name).values()
    ]


def _texts() -> list[dict[str, Any]]:
    from palimpsest.statistics import TEXTS

    return [
        {"name": name, "summary": row.summary, "fixed options": dict(row.options), "source": row.source}
        for name, row in TEXTS.rows().items()
    ]


def _statistics() -> list[dict[str, Any]]:
    terminal.quiet_libraries()
    from palimpsest.statistics import Cache

    rows = []
    for record in Cache().records():
        # A record that is damaged in one of these fields is not worth an error here.
        with suppress(LookupError, TypeError, AttributeError):
            rows += _statistic(record)
    return rows


def _statistic(record: dict[str, Any]) -> list[dict[str, Any]]:
    identity = record["identity"]
    if "weights" not in identity:
        return []
    return [
        {
            "kind": identity.get("derived", identity["kind"]),
            "site": identity["site"],
            "layer": identity["layer"],
            "weights": identity["weights"],
            "text": identity["text"].get("name") or identity["text"].get("dataset") or identity["text"]["kind"],
            "tokens": record.get("count"),
            "error": None if record.get("error") is None else round(record["error"], 4),
            "created": record["created"],
            "bytes": record["bytes"],
            "file": record["file"].rpartition("/")[2],
        }
    ]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
