"""A folder or hub id as a transformers model and its tokenizer: every file is looked at before it is used."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.checkpoints.config_files import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    check_files,
    file_of,
)
from palimpsest.checkpoints.refusals import field_at_fault, refused_by_transformers
from palimpsest.errors import ModelError, some_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the families call the number of their positions; above so many, what is made of them is reckoned first.
_POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
_MANY_POSITIONS = 2**16
_LARGEST_TABLES = 2**29
_BLOCK_NUMBER = re.compile(r"\.(?:h|layers|blocks?)\.(\d+)\.")


def from_pretrained(
    name: str,
    source: str,
    *,
    dtype: str | torch.dtype,
    placement: str | Mapping[str, Any],
    trust_remote_code: bool = False,
    auto_class: str | None = None,
) -> tuple[Any, Any]:
    """The model and its tokenizer.

    Arguments:
        name: what the user called it.
        source: the folder or hub id; see `checkpoints.locating.locate`.
        dtype: a torch dtype, or `"auto"` for the checkpoint's own.
        placement: a device map.
        trust_remote_code: whether code that comes with the model may run.
        auto_class: the class of transformers to load with; left out, the one for generation that fits the config.

    Raises `ModelError` for whatever is wrong with the files.
    """
    import transformers

    fields = check_files(source, trust_remote_code=trust_remote_code)
    _refuse_adapter_beside(source)
    trust = {"trust_remote_code": trust_remote_code}
    where = _named(source, CONFIG)
    with refused_by_transformers(name, where=where, what="config", field=lambda: _field_of_config(fields)):
        config = transformers.AutoConfig.from_pretrained(source, **trust)
    with refused_by_transformers(name, where=_tokenizer_place(source), what="tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **trust)
        vocabulary = len(tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys())
        _try_out(tokenizer)
    if not vocabulary:
        raise ModelError(
            "The model has no tokenizer.",
            expected="tokenizer.json, or the vocabulary files of the model's own tokenizer",
            found="no vocabulary",
            where=source,
            remedy="copy the tokenizer's files from the model's original folder",
        )
    generation = file_of(source, GENERATION_CONFIG)
    if generation is not None:
        with refused_by_transformers(name, where=str(generation), what="generation config"):
            transformers.GenerationConfig.from_pretrained(str(generation.parent), generation.name)
    _refuse_large_tables(where, config, fields, auto_class)
    kind = _kind(config, auto_class)
    with refused_by_transformers(
        name,
        where=source,
        what="weights and config",
        field=lambda: field_at_fault(fields, lambda rest: _built(type(config)(**rest), auto_class)),
        config=where,
    ):
        try:
            module, report = kind.from_pretrained(
                source, dtype=dtype, device_map=placement, use_safetensors=True, output_loading_info=True, **trust
            )
        except RuntimeError as error:
            _refuse_misfits(source, config, auto_class, error)
            raise
    require_complete(source, sorted(report["missing_keys"]))
    _refuse_more_layers(where, config, report["unexpected_keys"])
    return module, tokenizer


def _try_out(tokenizer: Any) -> None:
    """Uses a tokenizer once: what is of the wrong kind in its files shows in use, some of it only in a long text.

    Raises `TypeError`, or what using it raises.
    """
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or longest != longest:
        raise TypeError(f"model_max_length is {longest!r}, not a number")
    tokenizer.decode(tokenizer("The capital of France is")["input_ids"], skip_special_tokens=True)


def _refuse_adapter_beside(source: str) -> None:
    """Otherwise transformers would put the adapter on by itself, without a word."""
    if Path(source).is_dir() and (Path(source) / ADAPTER_CONFIG).exists():
        raise ModelError(
            "The folder holds a model and an adapter.",
            expected="one of the two",
            found=f"{CONFIG} and {ADAPTER_CONFIG}",
            where=source,
            remedy=f"take the adapter's files (adapter_*) out of the folder to load the model as it is, or {CONFIG} "
            "and the weights to load the adapter's base model with the adapter merged into it",
        )


def _named(source: str, file: str) -> str:
    return str(Path(source) / file) if Path(source).is_dir() else f"{source}, {file}"


def _tokenizer_place(source: str) -> str:
    found = [one for one in ("tokenizer.json", TOKENIZER_CONFIG) if (Path(source) / one).exists()]
    return f"{source}, {' or '.join(found)}" if found else source


def _field_of_config(fields: Mapping[str, Any]) -> str | None:
    from transformers import CONFIG_MAPPING, AutoConfig

    if fields["model_type"] not in CONFIG_MAPPING:
        return f"model_type = {fields['model_type']!r}"

    def build(rest: Mapping[str, Any]) -> None:
        with tempfile.TemporaryDirectory(prefix="palimpsest-config-") as folder:
            (Path(folder) / CONFIG).write_text(json.dumps(rest), encoding="utf-8")
            AutoConfig.from_pretrained(folder, trust_remote_code=False)

    return field_at_fault(fields, build)


def _kind(config: Any, auto_class: str | None) -> Any:
    import transformers

    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    default = "AutoModelForSeq2SeqLM" if is_encoder_decoder else "AutoModelForCausalLM"
    return getattr(transformers, auto_class or default)


def _built(config: Any, auto_class: str | None) -> Any:
    """The model of a config, without weights."""
    with torch.device("meta"):
        return _kind(config, auto_class).from_config(config)


def _refuse_large_tables(where: str, config: Any, fields: Mapping[str, Any], auto_class: str | None) -> None:
    """A slip in the number of positions must not fill the memory with masks and sines: no weight shows that it is one.

    Raises `ModelError` for tables that are larger than the model's weights, and than half a gigabyte.
    """
    found = {name: value for name in _POSITION_FIELDS if isinstance(value := fields.get(name), int)}
    if max(found.values(), default=0) <= _MANY_POSITIONS:
        return
    with refused_by_transformers(where, where=where, what="config", remedy="check the number of positions"):
        module = _built(config, auto_class)
    tables, weights = (
        sum(one.numel() * one.element_size() for one in ones) for ones in (module.buffers(), module.parameters())
    )
    if tables > max(_LARGEST_TABLES, weights):
        raise ModelError(
            "The model's config asks for tables of positions that are larger than the model.",
            expected=f"at most {max(_LARGEST_TABLES, weights) / 1e9:.1f} GB",
            found=f"{tables / 1e9:,.1f} GB for {', '.join(f'{name} = {value}' for name, value in found.items())}",
            where=where,
            remedy="copy the model again",
        )


def _refuse_misfits(source: str, config: Any, auto_class: str | None, error: RuntimeError) -> None:
    """Names the tensors whose shapes are not the model's, where that is what transformers has refused."""
    if not Path(source).is_dir():
        return
    from safetensors import safe_open

    wanted = {name: list(value.shape) for name, value in _built(config, auto_class).state_dict().items()}
    misfits = []
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            shapes = {name: list(opened.get_slice(name).get_shape()) for name in wanted.keys() & opened.keys()}
        misfits += [
            f"{name} is {shape}, the config makes it {wanted[name]}"
            for name, shape in sorted(shapes.items())
            if shape != wanted[name]
        ]
    if misfits:
        raise ModelError(
            "The model's weights do not have the shapes that its config says.",
            expected="weights and a config that belong together",
            found=some_of(misfits, between="; "),
            where=source,
            remedy="copy the folder again",
        ) from error


def require_complete(source: str, missing: list[str]) -> None:
    """What a checkpoint lacks is filled with random numbers, and such a model must not be edited."""
    if missing:
        raise ModelError(
            "The checkpoint lacks weights of the model.",
            expected="a tensor for every parameter",
            found=f"nothing for {some_of(missing)}",
            where=source,
            remedy="copy the folder again; or save the whole model with its head, not a part of it",
        )


def _refuse_more_layers(where: str, config: Any, unexpected: Any) -> None:
    """A config of fewer layers than the checkpoint has would load as a model that is cut short."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or getattr(config, "is_encoder_decoder", False):
        return
    extra = [name for name in unexpected if any(int(one) >= layers for one in _BLOCK_NUMBER.findall(f".{name}"))]
    if extra:
        raise ModelError(
            "The checkpoint has weights of more layers than the model's config says.",
            expected=f"{layers} layers, as in {CONFIG}",
            found=f"{len(extra)} weights of further layers, such as {sorted(extra)[0]}",
            where=where,
            remedy=f"copy the folder again; or set the number of layers in {CONFIG} right",
        )


def refuse_nan(module: PreTrainedModel, logits: Tensor, name: str) -> None:
    """Raises `ModelError` for a model that computes no numbers, and names the weights at fault."""
    if not torch.isnan(logits).any():
        return
    bad = [one for one, value in module.named_parameters() if not value.is_meta and not torch.isfinite(value).all()]
    raise ModelError(
        "The model computes NaN.",
        expected="finite logits for three tokens",
        found=f"NaN or infinite weights in {some_of(bad)}" if bad else "NaN from finite weights",
        where=f"model {name!r}",
        remedy="copy the model again" if bad else "load it in another dtype (--dtype float32), or check its config",
    )
