"""`doctor` says what a model is: its sites, its special cases, its tokenizer, and what each method can do there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError, PalimpsestError

if TYPE_CHECKING:
    from palimpsest.methods import Method
    from palimpsest.models import EditableModel

EXAMPLES = (
    "palimpsest doctor world",
    "palimpsest doctor ./my-model --json",
)
PANEL = terminal.LOOKING


def doctor(
    model: inputs.ModelArgument,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Look at a model: its family, every site, its tokenizer, and which methods can edit it."""
    loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code))
    result = examine(loaded)
    if as_json:
        terminal.emit_json(result)
    else:
        _show(result)


def examine(model: EditableModel) -> dict[str, Any]:
    """Everything `doctor` says, JSON-ready."""
    from palimpsest.models import departures

    module = model.module
    parameters = list(module.parameters())
    tied = _tied(model)
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
        "tied_weights": tied,
        "special": _special(model, tied),
        "sites": _sites(model),
        "tokenizer": _tokenizer(model),
        "generation": departures(model),
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


def _tied(model: EditableModel) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for name, _ in model.module.named_parameters(remove_duplicate=False):
        names.setdefault(model.weights.canonical(name), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _special(model: EditableModel, tied: list[list[str]]) -> list[str]:
    """Describes the special features of this model, one sentence each."""
    from palimpsest.models.sites import is_experts, is_quantised, is_transposed, num_experts, qualified_name

    sites, found = model.sites, []
    fused: dict[str, list[str]] = {}
    for name in sites.names():
        if sites.part(name).is_slice:
            fused.setdefault(sites.part(name).path, []).append(name)
    found += [f"fused: {path} holds {', '.join(names)}" for path, names in fused.items()]
    found += [f"tied: {' = '.join(names)}" for names in tied]
    matrices = [sites.module(name, 0) for name in sites.names() if sites.has_weight(name)]
    if any(is_transposed(matrix) for matrix in matrices if not is_experts(matrix)):
        found.append("transposed: weights are stored (in, out)")
    if sites.architecture.is_mixture:
        found.append(f"mixture of experts: {num_experts(model.module.config)} per layer, {_experts(model)}")
    if not sites.architecture.mlp_writes_residual:
        found.append("scaled or normed after the MLP: what mlp.down writes does not reach the residual stream as it is")
    packed = Counter(qualified_name(layer) for layer in model.module.modules() if is_quantised(layer))
    found += [
        f"quantised: {terminal.count(n, 'layer')} of type {kind}; changes run beside them" for kind, n in packed.items()
    ]
    if not model.has_separable_head:
        found.append("scaled or capped logits: the head is computed at every token")
    rows, used = int(model.module.get_input_embeddings().weight.shape[0]), len(model.tokenizer)
    if 2 * used < rows:
        found.append(f"half empty: {rows:,} embedding rows, and {used:,} tokens; the tokenizer may be another model's")
    if not model.tokenizer.is_fast:
        found.append("slow tokenizer: no character offsets, so methods that locate the subject cannot be used")
    return found


def _experts(model: EditableModel) -> str:
    """Describes which edits a mixture's experts support."""
    from palimpsest.models.sites import MLP_DOWN, is_experts, qualified_name

    sites = model.sites
    if MLP_DOWN not in sites.names():
        return "stacked behind a router; the site table names none, so only the attention can be edited"
    module = sites.module(MLP_DOWN, _layer_shown(model, MLP_DOWN))
    if not is_experts(module):
        return f"kept as a {qualified_name(module)}, which cannot be changed, so only the attention can be edited"
    return (
        "stacked behind a router; their down-projections side by side are mlp.down, which memit, rome, emmet, pmet,"
        " alphaedit, ft-l and locft can write into; there is no single mlp.up or mlp.gate"
    )


def _layer_shown(model: EditableModel, site: str) -> int:
    """The first layer, or of a mixture the first with experts."""
    sites = model.sites
    return next((layer for layer in range(sites.layers_of(site)) if sites.holds_experts(site, layer)), 0)


def _sites(model: EditableModel) -> list[dict[str, Any]]:
    from palimpsest.models.sites import EXPERTS_MATRIX, features, is_experts, is_quantised

    sites = model.sites
    rows = []
    for name in sites.names():
        module, part = sites.module(name, _layer_shown(model, name)), sites.part(name)
        weight = getattr(module, EXPERTS_MATRIX if part.is_experts else "weight", None)
        weight = weight if sites.has_weight(name) else None
        blocks = sites.architecture.stacks[sites.locate(name)[0]].blocks
        path = ".".join(piece for piece in (blocks, "{layer}", part.path) if piece)
        rows.append(
            {
                "site": name,
                "module": path
                + (f" (slice {part.index + 1} of {len(sites.layout(name)[0])})" if part.is_slice else ""),
                "type": type(module).__name__,
                "weight_shape": None
                if weight is None
                else list(features(module) if is_quantised(module) else weight.shape),
                "dtype": None if weight is None else str(weight.dtype).removeprefix("torch."),
                "parameters": weight.numel()
                if part.is_experts and weight is not None
                else sum(parameter.numel() for parameter in module.parameters()),
                "verified": is_experts(module) or not part.is_experts,
            }
        )
    return rows


def _tokenizer(model: EditableModel) -> dict[str, Any]:
    from palimpsest.models import has_chat_template

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
        "has_chat_template": has_chat_template(tokenizer),
    }


def _usable_methods(model: EditableModel) -> list[dict[str, Any]]:
    from palimpsest.methods import METHODS, method

    rows = []
    for name in METHODS:
        try:
            made = method(name)
            config, preset = made.resolve(model)
            missing = _missing_option(made, model, config)
        except (PalimpsestError, ImportError, AttributeError) as error:
            reason = error.problem if isinstance(error, PalimpsestError) else str(error)
            rows.append({"method": name, "can_edit": False, "needs": reason, "preset": None})
            continue
        wanted = made.capabilities
        needs = ["a subject"] * wanted.needs_subject + ["the old answer"] * wanted.needs_old_answer
        needs += missing
        rows.append(
            {
                "method": name,
                "can_edit": True,
                "needs": ", ".join(needs),
                "preset": preset.name if preset else None,
            }
        )
    return rows


def _missing_option(method: Method[Any], model: EditableModel, config: Any) -> list[str]:
    """The option that the method must be given on this model, if any. Raises `ModelError` when it cannot edit it."""
    try:
        method.require(model, config)
    except ConfigError as error:
        return [error.where or error.problem]
    return []


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
    for line in result["special"]:
        terminal.say(line)
    facts = result["tokenizer"]
    terminal.say(
        f"tokenizer: {facts['class']}, {facts['tokens']:,} tokens, "
        f"{'gives' if facts['gives_offsets'] else 'does NOT give'} character offsets, leading spaces "
        f"{'matter' if facts['leading_space_matters'] else 'do not matter'}, "
        f"{'puts a start token in front' if facts['adds_start_token'] else 'no start token'}, "
        f"{'closes texts with an end token' if facts['adds_end_token'] else 'no end token'}, "
        f"pad token {facts['pad_token'] or 'none (end of sequence is used, always masked)'}, "
        f"{'has a' if facts['has_chat_template'] else 'no'} chat template"
    )
    if result["generation"]:
        settings = ", ".join(f"{name} {value}" for name, value in result["generation"].items())
        terminal.say(
            f"generation config: {settings}. Palimpsest asks greedily and plainly, without these; "
            "`palimpsest ask --as-configured` shows what users will see"
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
        ("site", "module", "type", "weight", "dtype", "parameters per layer"),
        sites,
        caption="Every site was found in every layer and verified by one forward pass.",
    )
    rows = [
        (one["method"], terminal.verdict(one["can_edit"]), one["needs"], one["preset"] or "")
        for one in result["methods"]
    ]
    terminal.print_table(("method", "can edit", "needs, or why not", "preset"), rows)


def _shape(shape: list[int] | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape))
