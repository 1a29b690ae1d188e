"""`list` shows what there is by name, `doctor` what a model is and which methods can edit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import PalimpsestError, unknown_name

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel


TOPICS = ("methods", "models", "datasets", "metrics", "presets", "texts", "statistics")


def list_(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help=f"One of {', '.join(TOPICS)}.", show_default=False)],
    as_json: inputs.JsonOption = False,
) -> None:
    """List methods, models, data sets, metrics, presets, texts or the statistics in the cache."""
    if topic not in TOPICS:
        raise unknown_name("topic", topic, TOPICS)
    makers = (_methods, _models, _datasets, _metrics, _presets, _texts, _statistics)
    rows = makers[TOPICS.index(topic)]()
    if as_json:
        terminal.emit_json(rows)
    elif rows:
        terminal.print_table(tuple(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    else:
        terminal.say(f"There are no {topic}.")


def _methods() -> list[dict[str, Any]]:
    from palimpsest.methods.catalogue import METHODS

    return [
        {"name": name, "summary": row.summary, "fixed options": dict(row.options), "source": row.source}
        for name, row in METHODS.rows().items()
    ]


def _models() -> list[dict[str, Any]]:
    from palimpsest.models.architecture import architectures

    bundled = [{"name": "world", "kind": "bundled", "summary": "a small decoder that knows a small world"}]
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
    from palimpsest.datasets.catalogue import DATASETS

    return [{"name": name, "summary": row.summary, "source": row.source} for name, row in DATASETS.rows().items()]


def _metrics() -> list[dict[str, Any]]:
    from palimpsest.report.definitions import MEASURES, SCORINGS

    kinds = [{"name": name, "kind": "metric", "summary": text} for name, text in MEASURES.items()]
    return kinds + [{"name": name, "kind": "scoring", "summary": text} for name, text in SCORINGS.items()]


def _presets() -> list[dict[str, Any]]:
    from palimpsest.methods.catalogue import METHODS
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
    from palimpsest.statistics.text import TEXTS

    return [
        {"name": name, "summary": row.summary, "fixed options": dict(row.options), "source": row.source}
        for name, row in TEXTS.rows().items()
    ]


def _statistics() -> list[dict[str, Any]]:
    terminal.quiet_libraries()
    from palimpsest.statistics.cache import Cache

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
        for record in Cache().records()
        if "weights" in (identity := record["identity"])
    ]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def doctor(
    model: inputs.ModelArgument,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Look at a model: its family, every site, its tokenizer, and which methods can edit it."""
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map))
    result = examine(loaded)
    if as_json:
        terminal.emit_json(result)
    else:
        _show(result)


def examine(model: EditableModel) -> dict[str, Any]:
    """Everything `doctor` says, JSON-ready."""
    from collections import Counter

    module = model.module
    parameters = list(module.parameters())
    tied: dict[str, list[str]] = {}
    for name, _ in module.named_parameters(remove_duplicate=False):
        tied.setdefault(model.weights.canonical(name), []).append(name)
    return {
        "model": model.name,
        "class": type(module).__name__,
        "model_type": module.config.model_type,
        "family": model.sites.architecture.name,
        "layers": model.num_layers,
        "encoder_layers": model.sites.num_encoder_layers or None,
        "width": model.sites.d_model,
        "context_length": model.context_length,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtypes": dict(Counter(str(parameter.dtype).removeprefix("torch.") for parameter in parameters)),
        "device": str(model.device),
        "placement": _placement(model),
        "tied_weights": [names for names in tied.values() if len(names) > 1],
        "sites": _sites(model),
        "tokenizer": _tokenizer(model),
        "methods": _usable_methods(model),
    }


def _placement(model: EditableModel) -> dict[str, int]:
    """How many of the model's numbers are where."""
    found: dict[str, int] = {}
    for name in model.weights.names():
        parameter = model.weights.parameters(name)[0]
        place = "offloaded" if parameter.is_meta else str(parameter.device)
        found[place] = found.get(place, 0) + parameter.numel()
    return found


def _sites(model: EditableModel) -> list[dict[str, Any]]:
    sites = model.sites
    rows = []
    for name in sites.names():
        module, part = sites.module(name, 0), sites.part(name)
        weight = getattr(module, "weight", None)
        blocks = sites.architecture.stacks[sites.locate(name)[0]].blocks
        path = ".".join(piece for piece in (blocks, "{layer}", part.path) if piece)
        rows.append(
            {
                "site": name,
                "module": path
                + (f" (slice {part.index + 1} of {len(sites.layout(name)[0])})" if part.is_slice else ""),
                "type": type(module).__name__,
                "weight_shape": None if weight is None else list(weight.shape),
                "dtype": None if weight is None else str(weight.dtype).removeprefix("torch."),
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "verified": True,
            }
        )
    return rows


def _tokenizer(model: EditableModel) -> dict[str, Any]:
    tokenizer = model.tokenizer
    bare, spaced = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Rome", " Rome"))
    with_special = tokenizer("Rome")["input_ids"]
    return {
        "class": type(tokenizer).__name__,
        "tokens": len(tokenizer),
        "gives_offsets": bool(tokenizer.is_fast),
        "leading_space_matters": bare != spaced,
        "adds_start_token": len(with_special) > len(bare) and with_special[0] != bare[0],
        "adds_end_token": len(with_special) > len(bare) and with_special[-1] != bare[-1],
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
    }


def _usable_methods(model: EditableModel) -> list[dict[str, Any]]:
    from palimpsest.methods.catalogue import METHODS, method

    rows = []
    for name in METHODS:
        try:
            made = method(name)
            _, preset = made.resolve(model)
        except (PalimpsestError, ImportError, AttributeError) as error:
            reason = error.problem if isinstance(error, PalimpsestError) else str(error)
            rows.append({"method": name, "can_edit": False, "needs": reason, "preset": None})
            continue
        wanted = made.capabilities
        needs = ["a subject"] * wanted.needs_subject + ["the old answer"] * wanted.needs_old_answer
        if not wanted.is_batched:
            needs.append("one edit a call")
        rows.append(
            {
                "method": name,
                "can_edit": True,
                "needs": ", ".join(needs),
                "preset": preset.name if preset else None,
            }
        )
    return rows


def _show(result: dict[str, Any]) -> None:
    dtypes = ", ".join(result["dtypes"])
    encoder = f"{result['encoder_layers']} encoder layers and " if result["encoder_layers"] else ""
    terminal.say(
        f"{result['model']}: {result['class']}, family {result['family']}, {encoder}{result['layers']} layers of width "
        f"{result['width']}, {result['parameters']:,} parameters, {dtypes}, on {result['device']}"
    )
    if len(result["placement"]) > 1:
        terminal.say("spread: " + ", ".join(f"{count:,} on {place}" for place, count in result["placement"].items()))
    terminal.say(f"context length: {result['context_length'] or 'no fixed limit'}")
    tied = "; ".join(" = ".join(names) for names in result["tied_weights"])
    terminal.say(f"tied weights: {tied or 'none'}")
    facts = result["tokenizer"]
    terminal.say(
        f"tokenizer: {facts['class']}, {facts['tokens']:,} tokens, "
        f"{'gives' if facts['gives_offsets'] else 'does NOT give'} character offsets, leading spaces "
        f"{'matter' if facts['leading_space_matters'] else 'do not matter'}, "
        f"{'puts a start token in front' if facts['adds_start_token'] else 'no start token'}, "
        f"{'closes texts with an end token' if facts['adds_end_token'] else 'no end token'}, "
        f"pad token {facts['pad_token'] or 'none (end of sequence is used, always masked)'}"
    )
    sites = [
        (
            one["site"],
            one["module"],
            one["type"],
            _shape(one["weight_shape"]),
            one["dtype"] or "",
            f"{one['parameters']:,}",
        )
        for one in result["sites"]
    ]
    terminal.print_table(
        ("site", "module", "type", "weight", "dtype", "parameters a layer"),
        sites,
        caption="Every site was found in every layer and verified by one forward pass.",
    )
    rows = [
        (one["method"], terminal.verdict(one["can_edit"]), one["needs"], one["preset"] or "")
        for one in result["methods"]
    ]
    terminal.print_table(("method", "can edit", "needs", "preset"), rows)


def _shape(shape: list[int] | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape))
