"""Audit of a model's knowledge of the world: free greedy answers, exact match, by phrasing and relation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from palimpsest.errors import ConfigError, ModelError
from palimpsest.stopwatch import Progress
from palimpsest.teaching.answering import answer
from palimpsest.teaching.bars import bar
from palimpsest.teaching.tracing import MeanTrace, trace
from palimpsest.world import Knowledge, Sentence, build, held_out, sentence, taught, taught_two_hop


@runtime_checkable
class Loaded(Protocol):
    """A model together with its tokenizer, as `palimpsest.load` returns it."""

    module: Any
    tokenizer: Any


@dataclass(frozen=True)
class AnsweredShare:
    """`right` of `n` questions were answered exactly; `value` is the share, None where nothing was asked."""

    right: int
    n: int
    value: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.right / self.n if self.n else None)


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    `taught` and `held_out`: facts in phrasings read, and never read, with that subject; `never_met` in phrasings never
    read with anybody. `two_hop_read`:
    two-hop facts of training subjects, in the phrasings read; `two_hop_read_held_out` in those not read;
    `two_hop_unseen`: of subjects whose two-hop sentences were never read, in every phrasing. `by_relation`
    has the held-out share per relation, `two_hop_by_relation` the unseen share per "first>second".
    `causal_trace` is None where it was not asked for.
    """

    taught: AnsweredShare
    held_out: AnsweredShare
    never_met: AnsweredShare
    two_hop_read: AnsweredShare
    two_hop_read_held_out: AnsweredShare
    two_hop_unseen: AnsweredShare
    by_relation: dict[str, AnsweredShare] = field(default_factory=dict)
    two_hop_by_relation: dict[str, AnsweredShare] = field(default_factory=dict)
    causal_trace: MeanTrace | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in a model's card."""
        return asdict(self)


def audit(
    model: nn.Module | Loaded | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    knowledge: Knowledge | None = None,
    *,
    max_facts: int | None = None,
    trace_facts: int = 200,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool | Progress = False,
) -> Audit:
    """Ask a model everything, or about a random `max_facts` facts and as many two-hop facts.

    Arguments:
        model: a loaded model, the library's `EditableModel`, or the folder of one (then in float32); the last two
            bring their own tokenizer.
        knowledge: the world it was trained on; the default is `build()`.
        trace_facts: over how many facts the causal trace is taken; 0 leaves it out, and an encoder-decoder has none.
        seed: of the sample and the trace.
        batch_size: prompts per forward pass, which decides memory.
        progress: True for bars on stderr, or a function called as `(stage, done, total)`.

    Raises:
        ConfigError: a number is out of range, or a loaded model comes without its tokenizer.
        ModelError: the folder does not hold a model.
    """
    if (max_facts is not None and max_facts < 1) or trace_facts < 0 or batch_size < 1:
        raise ConfigError("A number is out of range.", expected="max_facts, batch_size >= 1 and trace_facts >= 0")
    model, tokenizer = _loaded(model, tokenizer)
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        trace_facts = 0
    knowledge = knowledge or build()
    rng = random.Random(f"audit|{seed}")
    facts = _sample(knowledge.facts, max_facts, rng)
    read = _sample(list(knowledge.two_hops("train")), max_facts, rng)
    unseen = _sample(list(knowledge.two_hops("test")), max_facts, rng)

    asked: list[tuple[str, str, Sentence]] = []
    for fact in facts:
        untaught = knowledge.relations[fact.relation].untaught
        for name, phrasings in (
            ("taught", taught(knowledge, fact)),
            ("held_out", held_out(knowledge, fact)),
            ("never_met", untaught),
        ):
            asked.extend((name, fact.relation, sentence(text, fact.subject, fact.object)) for text in phrasings)
    for two_hop in [*read, *unseen]:
        relation = f"{two_hop.hop.first}>{two_hop.hop.second}"
        shown = taught_two_hop(knowledge, two_hop)
        for text in two_hop.hop.phrasings:
            name = "two_hop_unseen" if not shown else "two_hop_read" if text in shown else "two_hop_read_held_out"
            asked.append((name, relation, sentence(text, two_hop.subject, two_hop.object)))

    training = model.training
    model.eval()
    try:
        with bar(progress, "asking the world", len(asked)) as report:
            prompts = [question.prompt for _, _, question in asked]
            answers = answer(model, tokenizer, prompts, batch_size=batch_size, report=report)
        with bar(progress if trace_facts else False, "tracing", trace_facts) as report:
            traced = (
                trace(model, tokenizer, knowledge, n=trace_facts, seed=seed, report=report) if trace_facts else None
            )
    finally:
        model.train(training)
    right = [
        (name, relation, given == question.object)
        for (name, relation, question), given in zip(asked, answers, strict=True)
    ]
    totals = _shares((name, ok) for name, _, ok in right)
    nothing = AnsweredShare(0, 0)
    return Audit(
        taught=totals.get("taught", nothing),
        held_out=totals.get("held_out", nothing),
        never_met=totals.get("never_met", nothing),
        two_hop_read=totals.get("two_hop_read", nothing),
        two_hop_read_held_out=totals.get("two_hop_read_held_out", nothing),
        two_hop_unseen=totals.get("two_hop_unseen", nothing),
        by_relation=_shares((relation, ok) for name, relation, ok in right if name == "held_out"),
        two_hop_by_relation=_shares((relation, ok) for name, relation, ok in right if name == "two_hop_unseen"),
        causal_trace=traced,
    )


def _loaded(
    model: nn.Module | Loaded | str | Path, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ConfigError("A loaded model needs its tokenizer.", remedy="audit(model, tokenizer)")
        return model, tokenizer
    if isinstance(model, Loaded):
        loaded: Any = model
        return loaded.module, tokenizer or loaded.tokenizer
    try:
        options: Any = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(model, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return (
            kind.from_pretrained(model, dtype="float32", use_safetensors=True, **options),
            tokenizer or AutoTokenizer.from_pretrained(model, **options),
        )
    except (OSError, ValueError) as error:
        raise ModelError("The folder does not hold a language model.", where=str(model), found=str(error)) from error


def _sample(items: Sequence[Any], count: int | None, rng: random.Random) -> list[Any]:
    return list(items) if count is None or count >= len(items) else rng.sample(items, count)


def _shares(results: Iterator[tuple[str, bool]]) -> dict[str, AnsweredShare]:
    counts: dict[str, list[int]] = {}
    for name, ok in results:
        entry = counts.setdefault(name, [0, 0])
        entry[0] += ok
        entry[1] += 1
    return {name: AnsweredShare(right, n) for name, (right, n) in counts.items()}
