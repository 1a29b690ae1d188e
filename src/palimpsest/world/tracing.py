"""The causal trace of Meng et al. (2022), section 2: which place brings a corrupted subject's fact back.

The subject's embeddings are corrupted by noise; then one activation of the clean run is put back, and the
probability of the right answer's first token says how much that place carries. One forward pass per fact
holds the clean run, the corrupted ones and every restoration as rows of one batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from palimpsest.errors import ConfigError, ModelError
from palimpsest.world.knowledge import Knowledge
from palimpsest.world.rows import encode
from palimpsest.world.text import Sentence, sentence, taught

SITES = ("mlp", "block")
POSITIONS = ("subject_last", "last")


@dataclass(frozen=True)
class CausalTrace:
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
    report: Callable[[int], None] = lambda count: None,
) -> CausalTrace:
    """Trace `n` facts in taught statements that go on after the subject.

    Arguments:
        samples: draws of the noise per fact.
        noise: its standard deviation in multiples of that of the subjects' embedding entries (ROME: 3).
        report: called with 1 per traced fact.

    Raises:
        ConfigError: n or samples is not positive.
        ModelError: the model's blocks are not found, or it answers too few facts.
    """
    if n < 1 or samples < 1:
        raise ConfigError("A causal trace needs at least one fact and one sample.", found=f"n={n}, samples={samples}")
    blocks = _blocks(model)
    layers = len(blocks)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    deviation = noise * _deviation(embedding, tokenizer, knowledge)
    rng = random.Random(f"trace|{seed}")
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    for candidate in _candidates(knowledge, rng):
        if len(rows) == n:
            break
        coded = encode([candidate], tokenizer)[0].first
        start = coded.object[0]
        ids = torch.tensor(coded.ids[:start])
        if coded.subject[1] == start:
            # The subject ends the prompt, so that its last token and the prompt's cannot be told apart.
            continue
        with (
            _disturbed(embedding, blocks, coded.subject, start - 1, samples, deviation, generator),
            torch.no_grad(),
        ):
            logits = model(input_ids=ids.repeat(1 + samples * (1 + 4 * layers), 1), use_cache=False).logits[:, -1]
        if int(logits[0].argmax()) == coded.ids[start]:
            rows.append(logits.float().softmax(-1)[:, coded.ids[start]])
            report(1)
    if len(rows) < n:
        raise ModelError("The model answers too few facts to trace.", expected=f"at least {n}", found=str(len(rows)))
    mean = torch.stack(rows).mean(0)
    groups = mean[1:].view(-1, samples).mean(-1).tolist()
    cells = iter(groups[1:])
    restored = {site: {position: [next(cells) for _ in range(layers)] for position in POSITIONS} for site in SITES}
    return CausalTrace(n, noise, float(mean[0]), groups[0], restored)


def best_layer(result: CausalTrace) -> tuple[int, float]:
    """The layer whose MLP output at the subject's last token brings most back, and that probability."""
    values = result.restored["mlp"]["subject_last"]
    layer = max(range(len(values)), key=values.__getitem__)
    return layer, values[layer]


def early_share(result: CausalTrace) -> float:
    """Which part of the lost probability the best MLP restoration at the subject's last token brings back."""
    return (best_layer(result)[1] - result.corrupted) / max(1e-9, result.clean - result.corrupted)


def _deviation(embedding: nn.Module, tokenizer: PreTrainedTokenizerBase, knowledge: Knowledge) -> float:
    """Standard deviation of the embedding entries of all subjects' tokens."""
    subjects = sorted({fact.subject for fact in knowledge.facts})
    ids = [i for row in tokenizer(subjects, add_special_tokens=False)["input_ids"] for i in row]
    with torch.no_grad():
        return float(embedding(torch.tensor(ids)).float().std())


def _candidates(knowledge: Knowledge, rng: random.Random) -> Iterator[Sentence]:
    for fact in rng.sample(knowledge.facts, len(knowledge.facts)):
        statements = [text for text in taught(knowledge, fact) if not text.endswith("?")]
        yield sentence(rng.choice(statements), fact.subject, fact.object)


def _blocks(model: nn.Module) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(hasattr(block, "mlp") for block in module):
            return module
    raise ModelError("The model's blocks are not found.", expected="a list of blocks, each with an mlp")


@contextmanager
def _disturbed(
    embedding: nn.Module,
    blocks: nn.ModuleList,
    subject: tuple[int, int],
    last: int,
    samples: int,
    deviation: float,
    generator: torch.Generator,
) -> Iterator[None]:
    """Hooks that corrupt rows 1 and on at the subject and put row 0's activation back, one place per group
    of rows.

    Groups of `samples` rows: corrupted only, then for site, position, layer in this order, one restoration
    each. All groups share the same draws of the noise.
    """
    start, end = subject
    places = {"subject_last": end - 1, "last": last}

    def corrupt(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        noise = torch.randn(samples, end - start, output.shape[-1], generator=generator) * deviation
        groups = (output.shape[0] - 1) // samples
        disturbed = output.clone()
        disturbed[1:, start:end] += noise.repeat(groups, 1, 1).to(output.dtype)
        return disturbed

    def restoring(site: int, layer: int) -> Callable[[nn.Module, object, object], object]:
        def restore(module: nn.Module, inputs: object, output: object) -> object:
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor):
                raise ModelError("A block's output is not a tensor.", found=type(hidden).__name__)
            hidden = hidden.clone()
            for index, position in enumerate(places.values()):
                group = 1 + (site * len(places) + index) * len(blocks) + layer
                first = 1 + group * samples
                hidden[first : first + samples, position] = hidden[0, position]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return restore

    handles = [embedding.register_forward_hook(corrupt)]
    for layer, block in enumerate(blocks):
        handles.append(block.mlp.register_forward_hook(restoring(0, layer)))  # type: ignore[union-attr]
        handles.append(block.register_forward_hook(restoring(1, layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
