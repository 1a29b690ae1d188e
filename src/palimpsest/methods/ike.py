"""IKE, in-context knowledge editing (Zheng et al., arXiv:2305.12740): the edit, behind examples of edits, is read.

Nothing is trained and no weight changes. A prompt x is read as  D_1 ... D_k, f, x  (section 3.1), where f states the
new fact and every demonstration D_i states another one, of a corpus, followed by a prompt and its answer:

    copy      the other fact's own prompt     its new answer
    update    a rephrasing of it              its new answer
    retain    a prompt of another fact        that fact's own true answer

in the proportions 1 : 3 : 4. The k facts are those of the corpus that are most similar to the edit; the most similar
one stands next to it (section 3.2). Without demonstrations it is the PROMPT baseline: f and the prompt alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from pydantic import Field
from torch import Tensor

from palimpsest.datasets import training_edits
from palimpsest.errors import ConfigError
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.models import EditableModel, TextEncoder, inner_products, most_similar, text_encoder
from palimpsest.patches import InputPatch, MemoryEntry, filled_template
from palimpsest.requests import EditRequest, normalise

DemonstrationKind = Literal["copy", "update", "retain"]
KINDS: tuple[DemonstrationKind, ...] = ("copy", "update", "retain")
_RETAINED = tuple(f"locality.{one}" for one in ("neighborhood", "namesake", "other_relation", "out_of_scope"))


class IkeConfig(MethodConfig):
    """Options of `ike`."""

    corpus: str | None = None
    """Edits to take demonstrations from: a file, or a data set that needs none, of which the training split is read."""
    use_demonstrations: bool = True
    """Whether there are any; without them it is the PROMPT baseline, which needs no corpus."""
    num_demonstrations: int = Field(default=32, ge=1)
    """How many are chosen; those that do not fit the model's context are left out, the least similar ones first."""
    proportions: list[int] = Field(default=[1, 3, 4], min_length=3, max_length=3)
    """Of copy, update and retain demonstrations."""
    repeats_edit: bool = True
    """Whether the edit itself comes last among the demonstrations, as a copy."""
    encoder: str = "auto"
    """What finds similar texts: `ngrams`, a sentence encoder's folder or hub id, or `auto` (see `models.encoders`)."""
    template: str = "New Fact: {prompt} {answer}\nPrompt: {query}"
    """What a prompt becomes; demonstrations have the same form, followed by their answer."""
    reserve: int = Field(default=24, ge=1)
    """Tokens of the model's context that are left free for the answer."""


@dataclass(frozen=True)
class Corpus:
    """Edits that demonstrations are taken from, and their vectors, (edits, width)."""

    requests: tuple[EditRequest, ...]
    vectors: Tensor


@final
class Ike(Method[IkeConfig]):
    """Retrieval of demonstrations; see the module's docstring. A prompt is read behind the edit most similar to it."""

    Config: ClassVar[type[MethodConfig]] = IkeConfig
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._corpora: dict[tuple[str, str], Corpus] = {}
        self._encoders: dict[str, TextEncoder] = {}

    def check_model(self, model: EditableModel, config: IkeConfig) -> None:
        missing = [place for place in ("{prompt}", "{answer}", "{query}") if place not in config.template]
        if missing:
            raise ConfigError(
                "The template has no place for a part of the edit.",
                expected="{prompt}, {answer} and {query} in it",
                found=f"no {' and no '.join(missing)} in {config.template!r}",
                where="option template",
            )
        if config.use_demonstrations and config.corpus is None:
            raise ConfigError(
                "IKE takes its demonstrations from a corpus of other edits, and there is none.",
                expected="a file of edits with rephrasings and locality probes, or a built-in data set",
                found="no corpus",
                where="option corpus",
                remedy="type -o corpus=world-counterfact for the bundled edits, -o corpus=FILE for your own, or"
                " -o use_demonstrations=false for the bare edit",
            )

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: IkeConfig, run: EditRun
    ) -> InputPatch:
        encoder = self._encoders.setdefault(config.encoder, text_encoder(config.encoder))
        shown: list[list[str]] = []
        chosen: dict[str, list[str]] = {}
        if config.use_demonstrations:
            with run.clock.stage("corpus"):
                corpus = self._corpus(str(config.corpus), encoder)
        for done, request in enumerate(requests):
            run.progress("demonstrations", done, len(requests))
            if config.use_demonstrations:
                with run.clock.stage("retrieval"):
                    nearest = nearest_requests(request, corpus, encoder, config.num_demonstrations)
                    shown.append(demonstrations(request, nearest, config))
                chosen[request.id] = [one.id for one in nearest]
            else:
                shown.append([])
        run.progress("demonstrations", len(requests), len(requests))
        entries = [MemoryEntry.of(request, texts) for request, texts in zip(requests, shown, strict=True)]
        index = encoder.encode([request.prompt for request in requests])
        patch = InputPatch(
            entries,
            index,
            encoder=encoder,
            template=config.template,
            reserve=config.reserve,
        )
        kept = {entry.id: patch.num_fitting(model, entry, entry.prompt) for entry in entries}
        run.diagnostics.facts |= {"encoder": encoder.name, "demonstrations": chosen, "fitting": kept}
        too_long = [key for key, number in kept.items() if number is None]
        if too_long:
            run.diagnostics.notes.append(
                f"{len(too_long)} edit(s) do not fit the model's context and change nothing: {', '.join(too_long[:5])}."
            )
        return patch

    def _corpus(self, name: str, encoder: TextEncoder) -> Corpus:
        """The corpus with its vectors, read and encoded once."""
        key = (name, encoder.name)
        if key not in self._corpora:
            usable = tuple(
                one
                for one in training_edits(name).requests
                if _pairs(one, "update", None) and _pairs(one, "retain", None)
            )
            if not usable:
                raise ConfigError(
                    "No edit of the corpus can be made a demonstration.",
                    expected="edits with a rephrasing and a locality probe whose answer is given",
                    found="none",
                    where=f"corpus {name!r}",
                )
            self._corpora[key] = Corpus(usable, encoder.encode([f"{one.prompt} {one.target_new}" for one in usable]))
        return self._corpora[key]


def nearest_requests(request: EditRequest, corpus: Corpus, encoder: TextEncoder, number: int) -> list[EditRequest]:
    """The edits of a corpus that are most similar to a request, the most similar one last; never about its subject."""
    rows = [row for row, other in enumerate(corpus.requests) if not is_about(request, other)]
    others = [corpus.requests[row] for row in rows]
    own = encoder.encode([f"{request.prompt} {request.target_new}"])
    similarities = inner_products(corpus.vectors[rows], own)[:, 0]
    order = most_similar(similarities, [f"{one.prompt}\n{one.target_new}" for one in others], number)
    return [others[place] for place in reversed(order)]


def is_about(request: EditRequest, other: EditRequest) -> bool:
    """Whether a corpus's edit is the request itself, or is about its subject or the same fact."""
    if request.fact is not None and request.fact == other.fact:
        return True
    if request.subject is None or other.subject is None:
        return normalise(request.prompt) == normalise(other.prompt)
    return normalise(request.subject) in normalise(f"{other.subject} {other.prompt}")


def demonstrations(request: EditRequest, nearest: Sequence[EditRequest], config: IkeConfig) -> list[str]:
    """The texts to show before an edit, in the order of `nearest`, and the edit itself as a copy where asked for."""
    draw = random.Random(f"{config.seed}|{request.prompt}|{request.target_new}")
    kinds = [kind for kind, count in zip(KINDS, kind_counts(len(nearest), config.proportions), strict=True)
             for _ in range(count)]  # fmt: skip
    draw.shuffle(kinds)
    texts = []
    for other, kind in zip(nearest, kinds, strict=True):
        # A demonstration of any kind must not speak of the edit's subject; a copy never does.
        pairs = _pairs(other, kind, request.subject) or [(other.prompt, other.target_new)]
        texts.append(_shown(config.template, other, *draw.choice(pairs)))
    own = [_shown(config.template, request, request.prompt, request.target_new)] if config.repeats_edit else []
    return [*texts, *own]


def kind_counts(number: int, proportions: Sequence[int]) -> list[int]:
    """How many demonstrations of each kind there are among so many: as near to the proportions as whole numbers get."""
    exact = [number * one / sum(proportions) for one in proportions]
    counts = [int(one) for one in exact]
    by_rest = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    for place in by_rest[: number - sum(counts)]:
        counts[place] += 1
    return counts


def _pairs(other: EditRequest, kind: DemonstrationKind, subject: str | None) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a kind that an edit offers."""
    if kind == "copy":
        return [(other.prompt, other.target_new)]
    name = None if subject is None else normalise(subject)
    return [
        (probe.prompt, probe.expected)
        for probe in other.probes
        if probe.expected
        and probe.kind in (("generality",) if kind == "update" else _RETAINED)
        and (name is None or name not in normalise(probe.prompt))
    ]


def _shown(template: str, fact: EditRequest, prompt: str, answer: str) -> str:
    text = filled_template(template, prompt=fact.prompt, answer=fact.target_new, query=prompt)
    return f"{text} {answer}\n\n"
