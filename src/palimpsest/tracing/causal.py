"""Causal tracing (Meng et al., arXiv:2202.05262, section 2): which states of a model carry a fact about a subject.

    clean       p(answer | prompt)
    corrupted   the same with noise on the embeddings of the subject's tokens
    restored    corrupted, but one state h[token, layer] is what it was in the clean run

The difference between restored and corrupted is the state's indirect effect. Three kinds of state are traced: the
hidden state a layer ends with, and the outputs of MLPs and of attentions, these over a window of layers around it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.config import Config
from palimpsest.errors import DataError
from palimpsest.files import FileKind
from palimpsest.models import EditableModel
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing.questions import TracedPrompt, draw_noise, embedding_deviation, question
from palimpsest.tracing.restoration import Corruption, Restoration, restored_probabilities

KINDS = ("hidden", "mlp", "attention")
PUBLISHED_WINDOW, SHALLOWEST_PUBLISHED = 10, 28


class TraceOptions(Config):
    """How a trace is made."""

    samples: int = Field(default=10, ge=1)
    """Draws of the noise a prompt; probabilities are means over them."""
    noise: float = Field(default=3.0, gt=0)
    """Standard deviation of the noise, in multiples of that of the subjects' embedding entries."""
    deviation: float | None = Field(default=None, gt=0)
    """The standard deviation that `noise` multiplies; measured on the subjects at hand when left out."""
    window: int | None = Field(default=None, ge=1)
    """Layers in a window of MLPs or attentions; 10 as published when left out, and 10/28 of a shallower model."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the noise. Every prompt starts from it, so that its trace does not depend on its company."""
    forward_batch_size: int = Field(default=256, ge=1)
    """Rows in one forward pass; smaller needs less memory and gives the same trace."""


class CausalTrace(BaseModel):
    """The trace of one prompt. Probabilities are those of the first token of the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: str
    subject: str
    tokens: list[str]
    """The prompt's tokens as text."""
    subject_span: tuple[int, int]
    """Half-open span of the subject's tokens."""
    answer: str
    """The token whose probability is traced."""
    is_first: bool
    """Whether the model gives that token by itself."""
    clean: float
    corrupted: float
    restored: dict[str, list[list[float]]]
    """Kind of state (`hidden`, `mlp`, `attention`) to probabilities, tokens x layers."""
    window: int
    samples: int
    noise: float
    """Standard deviation of the noise that was added."""
    seed: int

    @classmethod
    def load(cls, file: str | Path) -> CausalTrace:
        """Reads what `model_dump_json` wrote. Raises `DataError` for a file that is no trace."""
        kind = FileKind(
            DataError, "The file does not hold a trace.", expected="what `palimpsest trace --out` wrote as trace.json"
        )
        return kind.record(Path(file), cls)


def trace(
    model: EditableModel,
    prompt: str,
    subject: str,
    target: str | None = None,
    *,
    options: TraceOptions | None = None,
    progress: Progress = silent,
) -> CausalTrace:
    """The causal trace of one prompt.

    Arguments:
        prompt: the text before the answer.
        subject: what it is about; occurs in the prompt.
        target: the answer that is traced; what the model says by itself when left out.
        progress: called as `(stage, done, total)` with the number of restorations.

    Raises `DataError` for a subject that is not in the prompt, `ModelError` for an encoder-decoder.
    """
    request = EditRequest(prompt, target or "an answer", subject=subject)
    return trace_question(model, question(model, request, target), options or TraceOptions(), progress)


def trace_question(
    model: EditableModel, asked: TracedPrompt, options: TraceOptions, progress: Progress = silent
) -> CausalTrace:
    """The causal trace of one question; see `trace`."""
    # In front of the subject every state is what it was in the clean run.
    layers, disturbed = range(model.num_layers), range(asked.subject[0], len(asked.ids))
    window = options.window or default_window(model.num_layers)
    restorations = [
        Restoration(site, (layer,) if kind == "hidden" else window_around(layer, window, model.num_layers), token)
        for kind, site in zip(KINDS, ("resid", model.sites.mlp_ends[1], "attn.out"), strict=True)
        for token in disturbed
        for layer in layers
    ]
    deviation = options.noise * (options.deviation or embedding_deviation(model, [asked]))
    corruption = Corruption(
        asked.ids,
        asked.subject,
        asked.answer_id,
        draw_noise(model, asked, deviation, samples=options.samples, seed=options.seed),
    )
    found = restored_probabilities(
        model,
        corruption,
        restorations,
        forward_batch_size=options.forward_batch_size,
        advance=lambda done: progress("tracing", done, len(restorations)),
    )
    cells = iter(found.restored)
    untouched = [[found.corrupted] * len(layers) for _ in range(asked.subject[0])]
    return CausalTrace(
        model=model.name,
        prompt=asked.request.prompt,
        subject=asked.request.subject or "",
        tokens=[model.tokenizer.decode([one]) for one in asked.ids],
        subject_span=asked.subject,
        answer=model.tokenizer.decode([asked.answer_id]),
        is_first=found.is_first,
        clean=found.clean,
        corrupted=found.corrupted,
        restored={kind: untouched + [[next(cells) for _ in layers] for _ in disturbed] for kind in KINDS},
        window=window,
        samples=options.samples,
        noise=deviation,
        seed=options.seed,
    )


def default_window(num_layers: int) -> int:
    """Layers in a window: 10, as in models of 28 to 48 layers in the paper, and the same share of shallower ones."""
    return min(PUBLISHED_WINDOW, max(1, round(PUBLISHED_WINDOW * num_layers / SHALLOWEST_PUBLISHED)))


def window_around(layer: int, window: int, num_layers: int, *, first: int = 0) -> tuple[int, ...]:
    """The layers of a window around one, cut off at `first` and the top; an even window has one more below it."""
    start, end = layer - window // 2, layer + (window + 1) // 2
    return tuple(range(max(first, start), min(num_layers, end)))
