"""The F-Learning paper's table 1 on models that know the old facts: learning alone against forgetting before learning.

    python bench/f_learning_table.py --real real      about an hour on one idle core; goes on where it was stopped

One batch of 1,000 facts, 3 seeds (each another sample and another order of facts), on the models of `make real`.

As published (arXiv:2311.08011, section 5.1 and appendix A): the model knows the old facts; forgetting and learning take
3 passes each in steps of 64 facts; LoRA adapts query and value; all old facts are forgotten; the rates of LLaMA2-7B.
What cannot carry over is the learning rate: 5e-5 is for seven billion weights. Ours is chosen for learning alone, on
records that are not reported: the largest harmonic mean of reliability, generality and locality, teacher-forced as in
the paper, with steps of as many facts as give the number of steps that the reported batch takes. Forgetting takes the
same one. Besides, LoRA adapts the MLP too (`lora, all`), because on query and value alone it learns next to nothing
here; and the rate of forgetting is varied, on the records for choosing.

Text is generated for the first seed only, to save time. Answers are learnt with the full stop that ends them in these
models' text: without it a model edited a thousand times goes on writing after the answer. Results:
`bench/results/f_learning_table_*.json`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import palimpsest as ps
from choose_presets import ALL_LINEAR
from common import Results, balance, one_thread, row
from palimpsest.evaluation import BaseAnswers
from palimpsest.evaluation.editor import Editor
from real_facts import FILES, LOCALITY, real_folder, records

NUM_EDITS, SEEDS, PROBES_PER_KIND = 1000, (0, 1, 2), 1
NUM_CHOOSING = 250
MAX_NEW_TOKENS = {"counterfact": 6, "zsre": 10}
# Without LoRA on all matrices, which the paper does not have.
LEARNERS = ("ft", "lora")
# Method, forgetting learner, learning learner.
VARIANTS = {
    "f-learning-ft": ("f-learning-ft", "ft", "ft"),
    "f-learning-lora": ("f-learning-lora", "lora", "lora"),
    "f-learning-lora-ft": ("f-learning-lora-ft", "lora", "ft"),
    "f-learning-lora, all": ("f-learning-lora", "lora, all", "lora, all"),
    "f-learning-lora-ft, all": ("f-learning-lora-ft", "lora, all", "ft"),
}
RATES = {  # LLaMA2-7B
    "zsre": {"f-learning-ft": 0.3, "f-learning-lora": 0.7, "f-learning-lora-ft": 3.0},
    "counterfact": {"f-learning-ft": 0.1, "f-learning-lora": 1.5, "f-learning-lora-ft": 3.0},
}
OTHER_RATES = (0.1, 0.3, 1.0, 3.0)
VARIED = ("f-learning-ft", "f-learning-lora, all", "f-learning-lora-ft, all")
LEARNING_RATES = {"ft": (1e-3, 2e-3), "lora": (1e-2,), "lora, all": (2e-3, 5e-3)}
PUBLISHED_RATE = 5e-5
PUBLISHED = {"epochs": 3, "stop_loss": 0.0}
# As many steps as the reported batch takes.
FACTS_PER_STEP = {"reported": 64, "choosing": round(64 * NUM_CHOOSING / NUM_EDITS)}
LORA = {"rank": 8, "alpha": 16.0}
SITES = {"lora": ["attn.q", "attn.v"], "lora, all": ALL_LINEAR}
SETTINGS = {
    "protocol": "batch",
    "num_edits": NUM_EDITS,
    "num_choosing": NUM_CHOOSING,
    "probes_per_kind": PROBES_PER_KIND,
    "max_new_tokens": MAX_NEW_TOKENS,
    "facts_per_step": FACTS_PER_STEP,
    "learning": PUBLISHED,
    "lora": LORA,
    "sites": SITES,
    "learning_rates": LEARNING_RATES,
    "rates": RATES,
}


class WithFullStop(Editor):
    """A method that is taught answers as sentences end; what is tested stays the answer itself."""

    def __init__(self, method: Any) -> None:
        self.method = method

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.name

    def resolve(self, model: ps.EditableModel) -> Any:
        """The method's options and preset."""
        return self.method.resolve(model)

    def edit(self, model: ps.EditableModel, requests: Sequence[ps.EditRequest], *args: Any, **kwargs: Any) -> Any:
        """The method's edit, with a full stop behind old and new answers."""
        stated = [replace(one, target_new=f"{one.target_new}.", target_old=f"{one.target_old}.") for one in requests]
        return self.method.edit(model, stated, *args, **kwargs)


class Bench:
    """One data set: its model, its records, and the changes towards the old answers, each computed once."""

    def __init__(self, real: Path, dataset: str, scratch: Path) -> None:
        self.dataset = dataset
        self.scratch = scratch
        self.model = ps.load(str(real / dataset))
        self.answers = BaseAnswers()
        self.reported = records(real, dataset, for_choosing=False).with_probes(PROBES_PER_KIND)
        self.choosing = records(real, dataset, for_choosing=True).with_probes(PROBES_PER_KIND)
        self.results = Results(f"f_learning_table_{dataset}", SETTINGS)

    def learn(self, part: str, learner: str, seed: int, rate: float, **labels: Any) -> dict[str, Any]:
        """Learning alone, at this learning rate; at 0 the model stays as it is."""
        labels = {"part": part, "method": learner, "seed": seed, **labels}
        options = options_of(part, learner, rate) if rate else {"epochs": 0}
        return self.results.get(labels, lambda: self._cell(labels, learner.split(",")[0], options))

    def forget_and_learn(
        self, part: str, variant: str, seed: int, rate: float, rates: dict[str, float], **labels: Any
    ) -> dict[str, Any]:
        """Forgetting at this rate before learning, at the chosen learning rates."""
        labels = {"part": part, "method": variant, "seed": seed, "rate": rate, **labels}
        return self.results.get(labels, partial(self._forget_and_learn, labels, rates))

    def _forget_and_learn(self, labels: dict[str, Any], rates: dict[str, float]) -> dict[str, Any]:
        method, forget, learn = VARIANTS[labels["method"]]
        part, seed = labels["part"], labels["seed"]
        patch = self._forget_patch(part, forget, seed, options_of(part, forget, rates[forget]))
        learn_options = options_of(part, learn, rates[learn])
        options = {"rate": labels["rate"], "forget_patch": patch, "learn_options": learn_options}
        return self._cell(labels, method, options)

    def _data(self, part: str) -> tuple[ps.Dataset, int]:
        return (self.reported, NUM_EDITS) if part == "reported" else (self.choosing, NUM_CHOOSING)

    def _cell(self, labels: dict[str, Any], method: str, options: dict[str, Any]) -> dict[str, Any]:
        data, count = self._data(labels["part"])
        record = ps.evaluate(
            self.model,
            WithFullStop(ps.method(method, preset="none", seed=labels["seed"], **options)),
            data,
            protocol=ps.Batch(),
            num_edits=count,
            seed=labels["seed"],
            scorings=("teacher_forced",) if labels["seed"] else ("generate", "teacher_forced"),
            max_new_tokens=MAX_NEW_TOKENS[self.dataset],
            forward_batch_size=128,
            base=self.answers,
        )
        return row(record, **labels)

    def _forget_patch(self, part: str, learner: str, seed: int, options: dict[str, Any]) -> str:
        folder = self.scratch / f"{part}-{learner}-{seed}".replace(", ", "-")
        if not folder.exists():
            data, count = self._data(part)
            old = [one.reversed_to_old() for one in data.sample(count, seed).requests]
            stated = [replace(one, target_new=f"{one.target_new}.") for one in old]
            method = ps.method(learner.split(",")[0], preset="none", seed=seed, **options)
            method.edit(self.model, stated).patch.save(folder)
        return str(folder)


def options_of(part: str, learner: str, learning_rate: float) -> dict[str, Any]:
    """Options of a learner: as published but for its learning rate and, for choosing, the facts in a step."""
    adapter = {**LORA, "sites": SITES[learner]} if learner in SITES else {}
    return {**PUBLISHED, **adapter, "facts_per_step": FACTS_PER_STEP[part], "learning_rate": learning_rate}


def quality(done: dict[str, Any], dataset: str) -> float:
    """Harmonic mean of reliability, generality and locality, teacher-forced."""
    scores = done["scores"]["teacher_forced"]
    return balance(scores[name]["mean"] for name in ("reliability", "generality", LOCALITY[dataset]))


def chosen_rates(bench: Bench, learners: Iterable[str]) -> dict[str, float]:
    """The learning rate of each learner, chosen for learning alone."""
    chosen = {}
    for learner in learners:
        rows = {rate: bench.learn("choosing", learner, 0, rate, learning_rate=rate) for rate in LEARNING_RATES[learner]}
        chosen[learner] = max(rows, key=lambda rate: quality(rows[rate], bench.dataset))
    return chosen


def table(bench: Bench, seed: int) -> None:
    """The rows that the paper has, for one seed."""
    rates = chosen_rates(bench, LEARNERS)
    for learner, rate in rates.items():
        bench.learn("reported", learner, seed, rate, row="table", learning_rate=rate)
    for variant, rate in RATES[bench.dataset].items():
        bench.forget_and_learn("reported", variant, seed, rate, rates, row="table")


def further(bench: Bench) -> None:
    """The learning rate as published, LoRA on all matrices, other rates of forgetting."""
    rates = chosen_rates(bench, LEARNING_RATES)
    for learner in LEARNERS:
        bench.learn("reported", learner, 0, PUBLISHED_RATE, row="learning rate as published")
    for seed in SEEDS:
        everywhere = "lora, all"
        rate = rates[everywhere]
        bench.learn("reported", everywhere, seed, rate, row="table", learning_rate=rate)
        for variant, (method, forget, _) in VARIANTS.items():
            if forget == everywhere:
                bench.forget_and_learn("reported", variant, seed, RATES[bench.dataset][method], rates, row="table")
    for variant, rate in itertools.product(VARIED, OTHER_RATES):
        bench.forget_and_learn("choosing", variant, 0, rate, rates, row="rates")


def main() -> None:
    """Both data sets, or the one that is named."""
    parser = real_folder()
    parser.add_argument("--dataset", choices=FILES, help="only this one")
    options = parser.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as scratch:
        chosen = [options.dataset] if options.dataset else list(FILES)
        benches = [Bench(options.real, dataset, Path(scratch) / dataset) for dataset in chosen]
        for bench in benches:
            bench.learn("reported", "ft", 0, 0.0, row="original model")
        for seed, bench in itertools.product(SEEDS, benches):
            table(bench, seed)
        for bench in benches:
            further(bench)


if __name__ == "__main__":
    main()
