"""From a user's choice of layers to layer numbers."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.errors import ConfigError

# LocFT-BF (arXiv:2509.22072) edits layer 22 of 32 on Llama 3; the same depth is taken where nobody has measured.
AUTO_DEPTH = 0.69
# Where subjects are enriched: causal tracing finds the facts of decoders of every size there (arXiv:2202.05262).
EARLY = (0.15, 0.5)
LOWER_DEPTH = 0.2


def layer_numbers(layers: Sequence[int] | str, count: int) -> list[int]:
    """Sorted layer numbers from 0.

    Arguments:
        layers: numbers (negative ones count from the last), `"all"`, `"auto"`, one at 0.69 of the depth, `"lower"`, one
            at 0.2 of it, or `"early"`, those from 0.15 to 0.5 of it.
        count: how many layers the model has.

    Raises `ConfigError` for a number out of range, a repetition or an empty list.
    """
    if layers == "all":
        return list(range(count))
    if layers == "auto":
        return [min(count - 1, int(AUTO_DEPTH * count))]
    if layers == "lower":
        return [min(count - 1, int(LOWER_DEPTH * count))]
    if layers == "early":
        first = min(count - 1, int(EARLY[0] * count))
        return list(range(first, max(first + 1, int(EARLY[1] * count))))
    if isinstance(layers, str):
        expected = "numbers, 'all', 'auto', 'lower' or 'early'"
        raise ConfigError("Unknown choice of layers.", expected=expected, found=repr(layers))
    numbers = [layer + count if layer < 0 else layer for layer in layers]
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= layer < count for layer in numbers):
        raise ConfigError(
            "The layers cannot be used.",
            expected=f"different numbers from 0 to {count - 1} (or -{count} to -1)",
            found=str(list(layers)),
            where="option layers",
        )
    return sorted(numbers)


def layer_number(layer: int | str, count: int) -> int:
    """The number from 0 of one layer: a number, or `"auto"`; see `layer_numbers`."""
    [found] = layer_numbers(layer if isinstance(layer, str) else [layer], count)
    return found
