"""The part of a forward pass that a change at one token of one layer can reach, and nothing else.

A causal model's hidden states before a token, and all that lies below a layer, do not depend on what is changed there.
They are computed once. Each later pass runs the blocks from `entry` on, over the tokens from that one on, and the head
at chosen places. Masks, positions and rotations come from the model's own code: it is called on the last tokens, with
the keys and values of the first ones as its cache, while the blocks below hand on what they are given. Rows are laid
so that the suffixes of all of them begin in one column, however long what stands before it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from palimpsest.errors import ModelError
from palimpsest.models.bypass import bypassed, head_at, recorded_arity
from palimpsest.models.editable import EditableModel
from palimpsest.models.hooks import Intervention, Point, captured, intervened
from palimpsest.models.tokens import PaddedBatch

# A wrong mask or position moves logits by a sizeable part of their range, rounding by far less than this.
SAME_WITHIN = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""By dtype, the largest difference of logits, as a share of the largest logit, of two ways to compute the same."""

Pairs = tuple[tuple[Tensor, Tensor], ...]


class _Prefix(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the tokens before the suffix. What a pass adds to them is not kept."""

    def __init__(self, length: int, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.length = length
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("a block below the suffix was run")
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self.length


@dataclass(frozen=True)
class Suffix:
    """Rows whose forward pass can be repeated from one layer and one token on; made by `prepare`.

    Arguments:
        model: the model.
        whole: the rows, padded on the right, with nothing masked: what stands behind a token never reaches it.
        lengths: (rows,), tokens of each row.
        columns: (rows,), each row's first token of the suffix.
        entry: first block that is run; `num_layers` for none.
        end: the block after the last one that is run; the final norm and the head follow it.
        entering: (rows, longest suffix, width), what enters block `entry`.
        prefix: keys and values of the tokens before, (rows, heads, longest prefix, width of a head) each, one pair for
            each block that is run; shorter ones stand to the right. None where the model cannot go on from a cache:
            then every pass is a whole one, with the same result.
        arity: length of the tuple that a block returns, 0 for a bare tensor.
        dtype: what the blocks compute in.
    """

    model: EditableModel
    whole: PaddedBatch
    lengths: Tensor
    columns: Tensor
    entry: int
    end: int
    entering: Tensor
    prefix: Pairs | None
    arity: int
    dtype: torch.dtype

    @property
    def first_columns(self) -> Tensor:
        """(rows,), where each suffix begins in the tensors that flow during `logits`, for whoever intervenes there."""
        return self.columns if self.prefix is None else torch.zeros_like(self.columns)

    def logits(self, rows: Tensor, tokens: Tensor, entering: Tensor | None = None) -> Tensor:
        """Logits at chosen places, (places, vocabulary), differentiable in `entering`.

        Arguments:
            rows: (places,), row of each place.
            tokens: (places,), its token, counted from the row's beginning; none before the suffix.
            entering: what enters block `entry` instead of what was found there, of the same shape.
        """
        sites = self.model.sites
        hidden = (self.entering if entering is None else entering).to(self.dtype)
        handed: dict[int, Tensor | None] = dict.fromkeys(range(self.end, self.model.num_layers))
        changes: dict[Point, Intervention] = {}
        if self.prefix is None:
            changes[_entrance(self.entry)] = lambda found: self._placed(found, hidden)
        elif self.entry == 0:
            changes[_entrance(0)] = lambda _: hidden
        else:
            handed |= dict.fromkeys(range(self.entry - 1)) | {self.entry - 1: hidden}
        rows, tokens = rows.to(self.columns.device), tokens.to(self.columns.device)
        columns = tokens - (self.columns - self.first_columns)[rows]
        with bypassed(sites, handed, self.arity), intervened(sites, changes), head_at(sites, rows, columns):
            output = self.model.forward(self.whole) if self.prefix is None else self._continue(self.prefix)
        logits: Tensor = output.logits[0]
        return logits

    def select(self, rows: Tensor) -> Suffix:
        """The same for some of the rows, (rows,) of indices; what only the others needed is cut off."""
        batch, rows = self.whole, rows.to(self.columns.device)
        whole = PaddedBatch(batch.input_ids[rows], batch.attention_mask[rows], batch.starts[rows])
        lengths, columns = self.lengths[rows], self.columns[rows]
        unused = int(self.columns.max() - columns.max())
        return replace(
            self,
            whole=whole,
            lengths=lengths,
            columns=columns,
            entering=_taken(self.entering[:, : int((lengths - columns).max())], rows),
            prefix=self.prefix
            and tuple(
                (_taken(keys[:, :, unused:], rows), _taken(values[:, :, unused:], rows)) for keys, values in self.prefix
            ),
        )

    def to(self, dtype: torch.dtype) -> Suffix:
        """The same for a model whose weights have meanwhile been cast; `entering` stays as exact as it is."""
        prefix = self.prefix and tuple((keys.to(dtype), values.to(dtype)) for keys, values in self.prefix)
        return replace(self, prefix=prefix, dtype=dtype)

    def _continue(self, prefix: Pairs) -> Any:
        """The model's own pass over the suffixes, with the prefixes as its cache."""
        own = dict(zip(range(self.entry, self.end), prefix, strict=True))
        longest = int(self.columns.max())
        layers = [_Prefix(longest, *own.get(layer, ())) for layer in range(self.model.num_layers)]
        before = torch.arange(longest, device=self.columns.device) >= longest - self.columns[:, None]
        mask = nn.functional.pad(before.long(), (0, self.entering.shape[1]), value=1)
        chosen = _suffix_tokens(self.columns, self.lengths, self.entering.shape[1])
        positions = {"position_ids": self.whole.position_ids.gather(1, chosen)} if self.model.takes_positions else {}
        with _attention_kernel(self.dtype, self.columns.device):
            return self.model.module(
                input_ids=self.whole.input_ids.gather(1, chosen),
                attention_mask=mask,
                past_key_values=Cache(layers=layers),
                use_cache=True,
                **positions,
            )

    def _placed(self, found: Tensor, hidden: Tensor) -> Tensor:
        """Whole rows, (rows, tokens, width), with their suffixes replaced."""
        reach = torch.arange(hidden.shape[1], device=self.columns.device) + self.columns[:, None]
        rows, at = (reach < self.lengths[:, None]).nonzero(as_tuple=True)
        columns = self.columns[rows] + at
        rows, at, columns = (index.to(hidden.device) for index in (rows, at, columns))
        return found.index_put((rows, columns), hidden[rows, at])


@torch.no_grad()
def prepare_suffix(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    columns: Sequence[int],
    entry: int,
    *,
    last_block: int | None = None,
    points: Sequence[Point] = (),
    from_cache: bool | None = None,
) -> tuple[Suffix, dict[Point, Tensor]]:
    """One whole forward pass, and what later passes over the suffixes need from it.

    Arguments:
        rows: token ids.
        columns: of each row the first token that later passes run.
        entry: the first block that later passes run, from 0 to `num_layers`.
        last_block: the block that the final norm and the head follow; the last one when left out.
        points: sites whose tensors at `columns` are wanted from this pass.
        from_cache: whether later passes go on from a cache; when left out, two rows are run both ways to find out,
            once for each model, first block and dtype, and again for longer rows.

    Returns the suffix, and for each point a tensor of shape (rows, width).

    Raises `ModelError` for an encoder-decoder or a layer out of range.
    """
    end = model.num_layers if last_block is None else last_block + 1
    require_decoder(model)
    _require_range(entry, end, model.num_layers)
    padded = model.batch(rows)
    batch = replace(padded, attention_mask=torch.ones_like(padded.attention_mask))
    lengths = padded.attention_mask.sum(1)
    firsts = torch.tensor(columns, device=lengths.device)
    takes_cache = "past_key_values" in inspect.signature(model.module.forward).parameters
    cache = DynamicCache() if takes_cache and from_cache is not False else None
    one = torch.zeros(1, dtype=torch.long, device=firsts.device)
    with (
        recorded_arity(model.sites.block(0)) as arities,
        captured(model.sites, list(dict.fromkeys([_entrance(entry), *points]))) as found,
        head_at(model.sites, one, one),
    ):
        model.forward(batch, **({"past_key_values": cache, "use_cache": True} if cache is not None else {}))
    hidden = found[_entrance(entry)]
    longest = max(len(row) - column for row, column in zip(rows, columns, strict=True))
    suffix = Suffix(
        model=model,
        whole=batch,
        lengths=lengths,
        columns=firsts,
        entry=entry,
        end=end,
        entering=_gathered(hidden, _suffix_tokens(firsts, lengths, longest)),
        prefix=None if cache is None else _prefixes(cache, range(entry, end), firsts, batch),
        arity=arities[0],
        dtype=hidden.dtype,
    )
    if from_cache is None and suffix.prefix is not None and not _may_go_on(suffix):
        suffix = replace(suffix, prefix=None)
    return suffix, {point: _gathered(found[point], firsts[:, None])[:, 0] for point in points}


def _attention_kernel(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[None]:
    """In half precision on a CPU the plain attention: the fused one's backward pass took four times its time there."""
    is_slow = device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    return sdpa_kernel(SDPBackend.MATH) if is_slow else nullcontext()


def _entrance(entry: int) -> Point:
    """Where what enters a block can be seen and changed; behind the last block, what leaves it."""
    return Point("resid", entry - 1) if entry else Point("resid", 0, "input")


def _suffix_tokens(columns: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """(rows, longest), the tokens of each row's suffix; behind its end the last one again and again."""
    reach = torch.arange(longest, device=columns.device) + columns[:, None]
    return reach.minimum(lengths[:, None] - 1)


def _prefixes(cache: Any, layers: range, columns: Tensor, batch: PaddedBatch) -> Pairs | None:
    """Keys and values before the columns, moved to end there; None when the cache has no pair for every token."""
    rows, width = batch.input_ids.shape
    longest = int(columns.max())
    # Rows are padded on the right while they are computed and moved afterwards: padding on the left attends to nothing
    # at all, which some attention kernels answer with NaN. Here a row's first token stands in for it, masked.
    wanted = (torch.arange(longest, device=columns.device) - longest + columns[:, None]).clamp(min=0)
    kept = []
    for layer in layers:
        stored = cache.layers[layer] if layer < len(cache.layers) else None
        pair = (getattr(stored, "keys", None), getattr(stored, "values", None))
        moved = [
            _gathered(one.transpose(1, 2), wanted).transpose(1, 2).contiguous()
            for one in pair
            if _holds_every_token(one, rows, width)
        ]
        if len(moved) < 2:
            return None
        kept.append((moved[0], moved[1]))
    return tuple(kept)


def _holds_every_token(tensor: Any, rows: int, width: int) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor.shape[::2] == (rows, width)


def _gathered(tensor: Tensor, columns: Tensor) -> Tensor:
    """Chosen columns of every row: (rows, tokens, ...) and (rows, n) to (rows, n, ...)."""
    columns = columns.to(tensor.device)
    return tensor[torch.arange(len(columns), device=tensor.device)[:, None], columns]


def _taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """Chosen rows of a tensor that may be on the device of a later block."""
    return tensor[rows.to(tensor.device)]


def _may_go_on(suffix: Suffix) -> bool:
    """`_goes_on_rightly`, remembered: it is a matter of the model's code, not of its weights."""
    key = ("goes on from a cache", suffix.entry, suffix.end, suffix.dtype, suffix.columns.device)
    length = int(suffix.lengths.max())
    if suffix.model.findings.get(key, 0) < length:
        if not _goes_on_rightly(suffix):
            return False
        suffix.model.findings[key] = length
    return True


def _goes_on_rightly(suffix: Suffix) -> bool:
    """Whether a pass over the suffixes of the shortest and the longest prefix gives what a whole pass gives."""
    some = suffix.select(suffix.columns.argsort()[[0, -1]])
    rows = torch.arange(2, device=suffix.columns.device)
    tokens = some.lengths - 1
    whole = replace(some, prefix=None).logits(rows, tokens).float()
    try:
        short = some.logits(rows, tokens).float()
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        # Families of other packages may take a cache in their own ways.
        return False
    return bool((whole - short).abs().max() <= SAME_WITHIN[suffix.dtype] * whole.abs().max())


def require_decoder(model: EditableModel) -> None:
    """Raises `ModelError` for an encoder-decoder."""
    if model.is_encoder_decoder:
        raise ModelError(
            "What a change at one token reaches is known only in a decoder.",
            expected="a decoder-only model, whose tokens see those before them",
            found="an encoder-decoder, whose encoder's tokens all see one another",
            where=f"model {model.name!r}",
        )


def _require_range(entry: int, end: int, count: int) -> None:
    if not 0 <= entry <= end <= count:
        raise ModelError(
            "A layer is out of range.",
            expected=f"a first block and an end in order, from 0 to {count}",
            found=f"{entry} and {end}",
            where=f"a model with {count} layers",
        )
