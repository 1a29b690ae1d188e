"""The causal trace of Meng et al. (2022), section 2: which place brings a corrupted subject's fact back.

The subject's embeddings are corrupted by noise; then one activation of the clean run is put back, and the
probability of the right answer's first token says how much that place carries. `palimpsest.tracing` does the work;
here the world's own facts are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from palimpsest.errors import ConfigError, ModelError
from palimpsest.models import EditableModel
from palimpsest.teaching.rows import encode
from palimpsest.tracing import Corruption, Probabilities, Restoration, restored_probabilities
from palimpsest.world import Knowledge, Sentence, sentence, taught

_SITE_NAMES = MappingProxyType({"mlp": "mlp.down", "block": "resid"})
SITES = tuple(_SITE_NAMES)
POSITIONS = ("subject_last", "last")


@dataclass(frozen=True)
class MeanTrace:
    """Mean probabilities of the right answer's first token over `n` facts that the model answers.

    `clean` is the undisturbed run, `corrupted` the one with noise on the subject's embeddings, and
    `restored[site][position][layer]` the corrupted run with one activation put back: site "mlp" (the MLP's
    output) or "block" (the block's output), position "subject_last" or "last" (of the prompt).
    """

    n: int
    noise: float
    clean: float
    corrupted: float
    restored: dict[str, dict[str, list[float]]]


def trace(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    knowledge: Knowledge,
    *,
    n: int = 100,
    samples: int = 4,
    noise: float = 3.0,
    seed: int = 0,
    report: Callable[[float, str], None] = lambda done, note: None,
) -> MeanTrace:
    """Trace `n` facts in taught statements that go on after the subject.

    Arguments:
        samples: draws of the noise per fact.
        noise: its standard deviation in multiples of that of the subjects' embedding entries (ROME: 3).
        report: called with the number of facts traced so far, and "".

    Raises:
        ConfigError: n or samples is not positive.
        ModelError: the model's family is unknown, or it answers too few facts.
    """
    if n < 1 or samples < 1:
        raise ConfigError("A causal trace needs at least one fact and one sample.", found=f"n={n}, samples={samples}")
    editable = EditableModel(model, tokenizer, name="world")
    deviation = noise * _deviation(model, tokenizer, knowledge)
    rng = random.Random(f"trace|{seed}")
    generator = torch.Generator().manual_seed(seed)
    found: list[Probabilities] = []
    for candidate in _candidates(knowledge, rng):
        if len(found) == n:
            break
        coded = encode([candidate], tokenizer)[0].first
        start, (first, end) = coded.object[0], coded.subject
        if end == start:
            # The subject ends the prompt, so that its last token and the prompt's cannot be told apart.
            continue
        draws = torch.randn(samples, end - first, editable.sites.d_model, generator=generator) * deviation
        result = restored_probabilities(
            editable,
            Corruption(coded.ids[:start], coded.subject, coded.ids[start], draws),
            [
                Restoration(_SITE_NAMES[site], (layer,), token)
                for site in SITES
                for token in (end - 1, start - 1)
                for layer in range(editable.num_layers)
            ],
            forward_batch_size=256,
        )
        if result.is_first:
            found.append(result)
            report(len(found), "")
    if len(found) < n:
        raise ModelError("The model answers too few facts to trace.", expected=f"at least {n}", found=str(len(found)))
    cells = iter([mean(values) for values in zip(*(one.restored for one in found), strict=True)])
    restored = {
        site: {position: [next(cells) for _ in range(editable.num_layers)] for position in POSITIONS} for site in SITES
    }
    return MeanTrace(n, noise, mean(one.clean for one in found), mean(one.corrupted for one in found), restored)


def best_layer(result: MeanTrace) -> tuple[int, float]:
    """The layer whose MLP output at the subject's last token brings most back, and that probability."""
    values = result.restored["mlp"]["subject_last"]
    layer = max(range(len(values)), key=values.__getitem__)
    return layer, values[layer]


def early_share(result: MeanTrace) -> float:
    """Which part of the lost probability the best MLP restoration at the subject's last token brings back."""
    return (best_layer(result)[1] - result.corrupted) / max(1e-9, result.clean - result.corrupted)


def _deviation(model: nn.Module, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge) -> float:
    """Standard deviation of the embedding entries of all subjects' tokens."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    subjects = sorted({fact.subject for fact in knowledge.facts})
    ids = [i for row in tokenizer(subjects, add_special_tokens=False)["input_ids"] for i in row]
    with torch.no_grad():
        return float(embedding(torch.tensor(ids, device=next(embedding.parameters()).device)).float().std())


def _candidates(knowledge: Knowledge, rng: random.Random) -> Iterator[Sentence]:
    for fact in rng.sample(knowledge.facts, len(knowledge.facts)):
        statements = [text for text in taught(knowledge, fact) if not text.endswith("?")]
        yield sentence(rng.choice(statements), fact.subject, fact.object)
