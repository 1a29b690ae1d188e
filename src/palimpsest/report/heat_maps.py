"""Causal traces as heat maps: one panel a kind of state, tokens over layers (Meng et al., figures 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.tracing import CausalTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from palimpsest.tracing import AverageTrace

_PANELS = (
    ("hidden", "hidden state", "Purples"),
    ("mlp", "MLP, {window}", "Greens"),
    ("attention", "attention, {window}", "Reds"),
)


def draw_trace(trace: CausalTrace | AverageTrace) -> Figure:
    """Three heat maps on one scale.

    For one prompt the answer's probability after restoring a token's state, the subject's tokens with a star; the scale
    begins at that of the corrupted run. For an average the indirect effect by class of tokens, from zero.
    """
    from matplotlib.figure import Figure

    rows = labelled_rows(trace)
    labels, layers = list(rows["hidden"]), len(next(iter(rows["hidden"].values())))
    bottom = trace.corrupted if isinstance(trace, CausalTrace) else 0.0
    top = max(value for kind in rows.values() for row in kind.values() for value in row)
    figure = Figure(
        figsize=(3 * min(5.0, max(2.6, 0.14 * layers)) + 1.6, 0.26 * len(labels) + 1.5), layout="constrained"
    )
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    window = "one layer" if trace.window == 1 else f"windows of {trace.window} layers"
    for panel, (kind, title, colours) in zip(panels, _PANELS, strict=True):
        image = panel.pcolormesh(list(rows[kind].values()), cmap=colours, vmin=min(bottom, top), vmax=top)
        panel.invert_yaxis()
        panel.set_yticks([place + 0.5 for place in range(len(labels))], labels)
        step = max(1, round(layers / 8))
        panel.set_xticks([layer + 0.5 for layer in range(0, layers, step)], range(0, layers, step))
        panel.set_title(title.format(window=window), fontsize=9)
        panel.set_xlabel("layer")
        panel.tick_params(labelsize=8)
        figure.colorbar(image, ax=panel, fraction=0.05).ax.tick_params(labelsize=7)
    figure.suptitle(_title(trace), fontsize=10)
    return figure


def save_trace(trace: CausalTrace | AverageTrace, file: str | Path, *, resolution: int = 150) -> None:
    """Writes `draw_trace` as a PNG, `resolution` in dots an inch; one trace always gives the same bytes."""
    draw_trace(trace).savefig(file, format="png", dpi=resolution, metadata={"Software": None})


def labelled_rows(trace: CausalTrace | AverageTrace) -> dict[str, dict[str, list[float]]]:
    """Kind of state to label to what is drawn, by layer; labels are the prompt's numbered tokens, or the classes."""
    if not isinstance(trace, CausalTrace):
        return trace.effects
    start, end = trace.subject_span
    # A number in front keeps equal tokens apart.
    labels = [
        f"{index} {'*' if start <= index < end else ''}{token.strip()}" for index, token in enumerate(trace.tokens)
    ]
    return {kind: dict(zip(labels, rows, strict=True)) for kind, rows in trace.restored.items()}


def _title(trace: CausalTrace | AverageTrace) -> str:
    numbers = f"{trace.clean:.2f} clean, {trace.corrupted:.2f} with the subject corrupted"
    if isinstance(trace, CausalTrace):
        return f"p({trace.answer.strip()!r}) with one state put back; {numbers}"
    return f"what one state brings back, mean of {len(trace.prompts)} prompts; p(answer) {numbers}"
