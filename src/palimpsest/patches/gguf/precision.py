"""In which type an edited tensor is written: the smallest of a few that still carries the edit, as measured.

Weights that were read from a quantised file lie on its grid, and a change below half a step is rounded back. Q4_1
keeps 28% of a rank-one change of 1% of a weight's norm, Q8_0 all of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from palimpsest.checkpoints import Array, NewTensor, bits, expanded_values, type_name
from palimpsest.errors import ModelError

LARGEST_ERROR = 0.1
"""Of what an edit adds to the outputs at its own prompts, the share that may come out otherwise."""
LEAST_KEPT = 0.9
"""Of what an edit adds there, the share that has to arrive."""
F32, F16, Q8_0, BF16 = 0, 1, 8, 30
_ROUNDS = 12
_RIDGE = 1e-3


@dataclass(frozen=True)
class Survival:
    """The share of a tensor's change that is left after writing, at the inputs of the edit's own prompts.

    Arguments:
        error: norm of what comes out otherwise, relative to the norm of what the change adds.
        kept: the share of what the change adds that arrives: 1 for all, 0 for the old weights.
    """

    error: float
    kept: float


@dataclass(frozen=True)
class Change:
    """A tensor's change, in the file's order: (out, in).

    Arguments:
        name: the tensor's in the file.
        kind: the number of its type there.
        base: the values that the change is added to, float32.
        wanted: the values with the change, float32.
        keys: inputs of the layer at the edit's prompts, (n, in), float32; `None` for a tensor that no linear layer
            reads, whose survival is that of its entries.
        is_on_grid: whether the base is exactly what the file's type stands for.
    """

    name: str
    kind: int
    base: Array
    wanted: Array
    keys: Array | None
    is_on_grid: bool

    def survival(self, found: Array) -> Survival:
        """How much of the change these values carry."""
        action, miss = self._seen(self.wanted - self.base), self._seen(found - self.wanted)
        size = float(np.linalg.norm(action))
        if not size:
            return Survival(0.0, 1.0)
        inner = float((action.ravel().astype(np.float64) * miss.ravel()).sum())
        with np.errstate(invalid="ignore"):
            return Survival(float(np.linalg.norm(miss)) / size, 1 + inner / size**2)

    def _seen(self, values: Array) -> Array:
        return values if self.keys is None else values @ self.keys.T


def chosen(change: Change) -> tuple[NewTensor, Survival]:
    """The change in the first type that carries it: its own if it has 16 bits or more, Q8_0, F16, F32.

    A tensor of 8 bits or fewer that lies on its grid never keeps its type. Raises `ModelError` when none carries it.
    """
    own = [change.kind] if bits(change.kind) >= 16 or (change.kind == Q8_0 and not change.is_on_grid) else []
    # A norm or a bias is float32 wherever llama.cpp reads it.
    smaller = [Q8_0] if bits(change.kind) < 8 else []
    tried = []
    for kind in dict.fromkeys([*own, *smaller, F16, F32]):
        if kind != F32 and (change.wanted.ndim < 2 or change.wanted.shape[-1] % 32 and kind == Q8_0):
            continue
        data = quantised(change.wanted, kind, change.name)
        survival = change.survival(expanded_values(data, kind, change.wanted.shape))
        if survival.error <= LARGEST_ERROR:
            return NewTensor(kind, data), survival
        tried.append(f"{type_name(kind)}: {survival.error:.2f}")
    raise ModelError(
        "No type carries the edit.",
        expected=f"an error of at most {LARGEST_ERROR} of what the edit adds",
        found=", ".join(tried),
        where=f"tensor {change.name}",
        remedy="check the patch: the change is smaller than the rounding of float32",
    )


def kept_type(change: Change) -> tuple[NewTensor, Survival]:
    """The change in the tensor's own type, with the rounding errors at the edit's prompts fed back into the weights.

    Each round adds to the values what their rounded form lacks at the keys, spread over all inputs by ridge
    regression; the best of all rounds is taken.
    """
    target, best = change.wanted, None
    spread = None if change.keys is None else _spread(change.keys)
    for _ in range(_ROUNDS if change.keys is not None else 1):
        data = quantised(target, change.kind, change.name)
        found = expanded_values(data, change.kind, change.wanted.shape)
        survival = change.survival(found)
        if best is None or survival.error < best[1].error:
            best = NewTensor(change.kind, data), survival
        if spread is not None and change.keys is not None:
            target = target + ((change.wanted - found) @ change.keys.T) @ spread
    if best is None or best[1].kept < LEAST_KEPT:
        raise ModelError(
            f"The type {type_name(change.kind)} does not carry the edit.",
            expected=f"at least {LEAST_KEPT:.0%} of what the edit adds",
            found="nothing" if best is None else f"{best[1].kept:.0%}, with the errors fed back",
            where=f"tensor {change.name}",
            remedy="leave --keep-type out: the edited tensors are then written in Q8_0 or F16",
        )
    return best


def quantised(values: Array, kind: int, name: str) -> Array:
    """Values as the bytes, flat, of a ggml type. Raises `ModelError` for a type that cannot be written here."""
    import gguf

    rows = np.ascontiguousarray(values, dtype=np.float32)
    rows = rows.reshape(-1, rows.shape[-1])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        try:
            return np.ascontiguousarray(gguf.quantize(rows, gguf.GGMLQuantizationType(kind))).view(np.uint8).reshape(-1)
        except NotImplementedError:
            return _by_libgguf(kind, name)(rows).view(np.uint8).reshape(-1)


def _by_libgguf(kind: int, name: str) -> Callable[[Array], Array]:
    found = "no package libgguf, which has it"
    if importlib.util.find_spec("libgguf") is not None:
        import libgguf

        found = "a type that is written with an importance matrix, or not at all"
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            if not libgguf.quantize_requires_imatrix(kind):
                return lambda rows: np.ascontiguousarray(libgguf.quantize_rows(rows, kind))
    raise ModelError(
        f"The type {type_name(kind)} cannot be written.",
        expected="F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0; with the package libgguf Q2_K to Q6_K too",
        found=found,
        where=f"tensor {name}",
        remedy="leave --keep-type out: the edited tensors are then written in Q8_0 or F16",
    )


def _spread(keys: Array) -> Array:
    """(n, in): turns outputs that are missing at the keys into a change of weights of smallest norm, nearly."""
    wide = keys.astype(np.float64)
    gram = wide @ wide.T
    ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.asarray(np.linalg.solve(gram + ridge, wide), dtype=np.float32)
