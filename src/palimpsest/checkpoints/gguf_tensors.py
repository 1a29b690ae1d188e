"""Where a model's parameters are in a GGUF file and how they lie there: looked up by name, verified by value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from palimpsest.checkpoints.gguf_header import Header, StoredTensor
from palimpsest.errors import ModelError, some_of

Array = np.ndarray[Any, Any]
# Relative distance of a quantised copy from the weight it was made of, by bits per weight: above it, it is of another
# one. Measured: 4 bits 0.07 to 0.09, 5 bits 0.04, 6 bits 0.02, 8 bits 0.006.
_FARTHEST = ((16, 0.005), (8, 0.02), (6.5, 0.04), (5.5, 0.08), (4.5, 0.16), (3, 0.3), (0, 0.6))
_ROTATED = re.compile(r"attn_[qk]\.")
_BLOCK = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class Turn:
    """How a parameter lies in a GGUF file.

    Arguments:
        how: `plain`: as in transformers; `permuted`: the rows of each head of a query or key projection in llama.cpp's
            order of rotary pairs; `transposed`: (in, out) in transformers, (out, in) in the file; `shifted`: larger by
            one, as Gemma's norms.
        heads: of a permuted projection.
    """

    how: Literal["plain", "permuted", "transposed", "shifted"]
    heads: int = 0

    def to_file(self, values: Array) -> Array:
        """The values of transformers as the file has them."""
        if self.how == "permuted":
            return self.rows_to_file(values)
        if self.how == "transposed":
            return np.ascontiguousarray(values.T)
        return values + np.float32(1) if self.how == "shifted" else values

    def rows_to_file(self, values: Array) -> Array:
        """A matrix with a row for each output, such as the second factor of an adapter, in the file's order of rows."""
        if self.how != "permuted":
            return values
        return self._swapped(values, (self.heads, 2, values.shape[0] // self.heads // 2))

    def from_file(self, values: Array) -> Array:
        """The file's values as transformers has them."""
        if self.how == "permuted":
            return self._swapped(values, (self.heads, values.shape[0] // self.heads // 2, 2))
        if self.how == "transposed":
            return np.ascontiguousarray(values.T)
        return values - np.float32(1) if self.how == "shifted" else values

    def _swapped(self, values: Array, groups: tuple[int, int, int]) -> Array:
        return np.ascontiguousarray(values.reshape(*groups, -1).swapaxes(1, 2).reshape(values.shape))


@dataclass(frozen=True)
class StoredPlace:
    """One tensor of the file that holds a parameter."""

    tensor: StoredTensor
    turn: Turn


def type_name(kind: int) -> str:
    """The name of a ggml type: `Q4_K`."""
    import gguf

    return str(gguf.GGMLQuantizationType(kind).name)


def bits(kind: int) -> float:
    """Bits per weight of a ggml type, scales included."""
    import gguf

    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return 8.0 * float(size) / float(per_block)


def num_bytes(kind: int, numel: int) -> int:
    """Bytes that a count of numbers of a ggml type takes."""
    import gguf

    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return numel // int(per_block) * int(size)


def stored_bytes(header: Header, tensor: StoredTensor) -> Array:
    """A tensor's bytes as the file has them, flat."""
    length = num_bytes(tensor.kind, tensor.numel)
    return np.memmap(header.path, np.uint8, mode="r", offset=tensor.start, shape=(length,))


def expanded_values(data: Array, kind: int, shape: tuple[int, ...]) -> Array:
    """The numbers, float32 of this shape, that bytes of a ggml type stand for."""
    import gguf

    rows = np.ascontiguousarray(data).reshape(-1, num_bytes(kind, shape[-1]))
    # A copy of its own: what is mapped from a file cannot be written to.
    return np.array(gguf.dequantize(rows, gguf.GGMLQuantizationType(kind)), dtype=np.float32).reshape(shape)


def stored_values(header: Header, tensor: StoredTensor) -> Array:
    """A tensor's numbers, float32, as the file has them: (out, in)."""
    return expanded_values(stored_bytes(header, tensor), tensor.kind, tensor.shape)


class GgufLayout:
    """Finds parameters in a file.

    Arguments:
        header: the file's.
        config: the transformers model's, for its numbers of heads.
        round_to: what the loaded weights were rounded to; `None` for a model that was not read from this file, whose
            weights the file has in fewer bits, and so only nearly.
    """

    def __init__(self, header: Header, config: Any, round_to: Callable[[Array], Array] | None) -> None:
        import gguf

        self.header, self._round_to = header, round_to
        self._by_name = {tensor.name: tensor for tensor in header.tensors}
        architectures = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        self._names: Any = None
        blocks = header.own("block_count")
        if header.architecture in architectures and isinstance(blocks, int):
            self._names = gguf.get_tensor_name_map(architectures[header.architecture], blocks)
        heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
        self._heads = sorted((one for one in heads if isinstance(one, int) and one > 0), reverse=True)

    def find(self, name: str, values: Array) -> StoredPlace:
        """Where a parameter is.

        Arguments:
            name: transformers' name of it.
            values: its values, float32, without any change on them.

        Raises `ModelError` when nothing in the file has these values, in any way that is known.
        """
        nearest: tuple[float, str] = (float("inf"), "no tensor of that shape")
        for tensor in self._candidates(name, values.shape):
            stored = stored_values(self.header, tensor)
            fitting = []
            for turn in self._turns(tensor, values):
                distance = self._distance(turn.from_file(stored), values)
                if distance <= self._farthest(tensor.kind):
                    fitting.append((distance, turn))
                elif distance < nearest[0]:
                    nearest = distance, f"{tensor.name}, {type_name(tensor.kind)}, relative distance {distance:.3g}"
            if fitting:
                best = min(fitting, key=lambda one: one[0])[1]
                self._require_one(name, [turn for _, turn in fitting if turn != best], best, values)
                return StoredPlace(tensor, best)
        raise ModelError(
            "The GGUF file does not have the model's weights.",
            expected=f"the values of {name}, of shape {values.shape}, in llama.cpp's order",
            found=nearest[1],
            where=str(self.header.path),
            remedy="give the GGUF file of the model that the patch was made for",
        )

    def _candidates(self, name: str, shape: tuple[int, ...]) -> Iterator[StoredTensor]:
        """The tensor of that name by llama.cpp's table, then others of its block, since some names have two uses."""
        named = None
        if self._names is not None:
            found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
            named = self._by_name.get(found) if found else None
        if named is not None:
            yield named
        number = re.search(r"\.(\d+)\.", name)
        for tensor in self.header.tensors:
            block = _BLOCK.match(tensor.name)
            is_near = (block is None) == (number is None) and (block is None or number is None or block[1] == number[1])
            if is_near and tensor is not named and tensor.shape in (shape, shape[::-1]):
                yield tensor

    def _turns(self, tensor: StoredTensor, values: Array) -> Iterator[Turn]:
        if tensor.shape == values.shape:
            yield Turn("plain")
            for heads in self._heads if _ROTATED.search(tensor.name) else ():
                if values.shape[0] % (2 * heads) == 0:
                    yield Turn("permuted", heads)
            if values.ndim == 1:
                yield Turn("shifted")
        if values.ndim == 2 and tensor.shape == values.shape[::-1]:
            yield Turn("transposed")

    def _distance(self, found: Array, values: Array) -> float:
        if self._round_to is not None:
            return 0.0 if np.array_equal(self._round_to(found), values) else _relative(found, values) + 1e-12
        return _relative(found, values)

    def _farthest(self, kind: int) -> float:
        if self._round_to is not None:
            return 0.0
        return next(farthest for least, farthest in _FARTHEST if bits(kind) >= least)

    def _require_one(self, name: str, others: list[Turn], best: Turn, values: Array) -> None:
        """Raises `ModelError` where two ways fit that are not the same: rows that are alike can be told in neither."""
        order = np.arange(values.size, dtype=np.float32).reshape(values.shape)
        unlike = [turn for turn in others if not np.array_equal(turn.to_file(order), best.to_file(order))]
        if unlike and self._round_to is not None:
            raise ModelError(
                "The order of a tensor in the GGUF file cannot be determined from its values.",
                expected=f"one way to turn {name}",
                found=some_of([turn.how for turn in (best, *unlike)]),
                where=str(self.header.path),
                remedy="write a Hugging Face folder with --as merged, and convert it with llama.cpp",
            )


def _relative(found: Array, values: Array) -> float:
    size = float(np.linalg.norm(values))
    return float(np.linalg.norm(found - values)) / size if size else float(np.linalg.norm(found) > 0)
