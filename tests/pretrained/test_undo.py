"""Patches on a pretrained model come off bit for bit, in any order, and a merged folder is the patched model.

What is asked here does not depend on how good an edit is, so every method takes as few steps as it can.
"""

from functools import cache

import pytest
import torch

import palimpsest as ps
from palimpsest.methods.catalogue import METHODS
from palimpsest.patches.export import write_merged
from palimpsest.patches.memory import MemoryPatch
from palimpsest.patches.weights import WeightPatch
from pretrained_models import pretrained_path

OSLO = ps.EditRequest(
    "The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo", id="japan",
    probes=(ps.Probe("generality", "Japan has the capital", "Oslo"),
            ps.Probe("locality.neighborhood", "The capital of Italy is", "Rome")),
)  # fmt: skip
LYON = ps.EditRequest(
    "The capital of France is", "Lyon", subject="France", target_old="Paris", id="france",
    probes=(ps.Probe("generality", "France has the capital", "Lyon"),
            ps.Probe("locality.neighborhood", "The capital of Spain is", "Madrid")),
)  # fmt: skip
PROMPTS = [OSLO.prompt, LYON.prompt, "The river that flows through London is the"]
PASS = {"text": "TEXT", "warm_up": 128, "rounds": 1, "look_again": False}
STEP = {"epochs": 1, "spare": False, "look_again": False}
SOLVED = {
    "text": "TEXT", "layers": [5], "statistics": {"max_tokens": 6_200, "tolerance": None}, "contexts": {"given": []},
    # One step is the first look at the loss, which moves nothing.
    "targets": {"steps": 2, "search": "adam"}, "look_again": False,
}  # fmt: skip
FORGETTING = {"forget_options": STEP, "learn_options": STEP}
OPTIONS = {
    "ft": STEP, "ft-l": STEP, "locft": STEP, "lora": STEP, "grace": {"steps": 1}, "calinet": {"steps": 1},
    "kn": {"steps": 2}, "rome": SOLVED, "r-rome": SOLVED, "memit": SOLVED, "emmet": SOLVED, "pmet": SOLVED,
    "alphaedit": SOLVED, "f-learning-ft": FORGETTING, "f-learning-lora": FORGETTING, "f-learning-lora-ft": FORGETTING,
    "t-patcher": {"text": "TEXT", "memory": {"max_tokens": 256, "top": 16}, "max_steps": 2, "first_check": 1},
    "wise": {"text": "TEXT", "max_tokens": 100, "contexts": {"given": []}, "steps": 1},
    "subject-neurons": {"text": "TEXT", "max_tokens": 256, "contexts": {"given": []}, "others": 2,
                        "alike": 2, "targets": {"steps": 2, "search": "adam"}},
    "mend": {"editor": "EDITOR"}, "ke": {"editor": "EDITOR"}, "serac": {"editor": "fresh", "self_contained": True},
    "crispedit": {**STEP, "text": "TEXT", "layers": [5], "statistics": {"max_tokens": 6_200, "tolerance": None}},
    "ultraedit": PASS, "stableedit": PASS, "horen": {"steps": 1},
    "ike": {"corpus": "world-counterfact", "encoder": "ngrams", "num_demonstrations": 2},
    "auto": {"ladder": [{"method": "lora", "preset": "none"}], "num_neighbours": 1, "num_contexts": 1, "keep": 0.0,
             "most_moved": 100.0},
}  # fmt: skip
"""Every method that edits a decoder, with options that take no time."""
TRAINING = {"steps": 1, "examples_per_step": 2, "validate_every": 1, "layers": [29]}
DTYPES = ("float32", "bfloat16")
OTHERS = [(dtype, method) for dtype in DTYPES for method in OPTIONS if method != "lora"]


class Bench:
    """A model, its weights as they were, and two patches of each method, made once."""

    def __init__(self, dtype, place):
        self.model = ps.load(pretrained_path("smollm2"), dtype=dtype)
        self.state = {name: value.clone() for name, value in self.model.module.state_dict().items()}
        self.place = place
        self.before = self.logits()
        self.patches = cache(self._made)

    def logits(self, model=None):
        """Of the prompts' last tokens, in one batch."""
        model = model or self.model
        with torch.no_grad():
            return [model.forward(model.batch([model.encode(prompt)])).logits[0, -1] for prompt in PROMPTS]

    def is_as_it_was(self):
        found = self.model.module.state_dict()
        is_same = found.keys() == self.state.keys() and all(torch.equal(found[n], v) for n, v in self.state.items())
        return is_same and all(map(torch.equal, self.logits(), self.before))

    def _made(self, method):
        named = {"TEXT": str(self._text()), "EDITOR": str(self.place / f"{method}-{self.model.module.dtype}")}
        given = {name: named.get(value, value) if isinstance(value, str) else value
                 for name, value in OPTIONS[method].items()}  # fmt: skip
        made = ps.method(method, preset="none", **{"look_again": False, **given})
        if given.get("editor") == named["EDITOR"]:
            examples = [OSLO, LYON] * 8
            made.train(self.model, _renamed(examples), TRAINING).save(named["EDITOR"])
        return [made.edit(self.model, [fact]).patch for fact in (OSLO, LYON)]

    def _text(self):
        file = self.place / "text.txt"
        if not file.exists():
            names = ("Norway", "Peru", "London", "the north", "a small town", "my family", "the company", "her book")
            verbs = ("was seen", "was built", "has been sold", "will be painted", "is known", "grew old", "came first")
            ends = ("near the lake", "by many people", "in the spring of that year", "after the war", "for a long time")
            lines = [f"{name} {verb} {end}, and {other} {more} {end}." for name in names for verb in verbs
                     for end in ends for other in names[:3] for more in verbs[:2]]  # fmt: skip
            file.write_text("\n".join(lines))
        return file


def _renamed(examples):
    """Examples about subjects of their own, since no fact may stand in the training twice."""
    from dataclasses import replace

    names = ["Peru", "Chad", "Cuba", "Iran", "Iraq", "Mali", "Oman", "Laos", "Fiji", "Togo", "India", "Egypt", "Kenya"]
    names += ["Nepal", "Qatar", "Yemen"]
    made = []
    for name, one in zip(names, examples, strict=True):
        probes = tuple(
            replace(probe, prompt=probe.prompt.replace(one.subject, name), fact=None) for probe in one.probes
        )
        made.append(replace(one, prompt=one.prompt.replace(one.subject, name), subject=name, id=name, fact=name,
                            probes=probes))  # fmt: skip
    return made


@pytest.fixture(scope="module")
def bench(request, tmp_path_factory):
    return Bench(request.param, tmp_path_factory.mktemp(request.param))


def undone(bench, method):
    first, second = bench.patches(method)
    assert bench.is_as_it_was()
    for patch in (first, second):
        with bench.model.patched(patch):
            # A patch that does nothing comes off exactly without any art. A memory decides by the question.
            assert isinstance(patch, MemoryPatch) or not bench.is_as_it_was()
    for upper, lower in ((first, second), (second, first)):
        for leaves in ("upper", "lower"):
            on = {"lower": lower.apply(bench.model), "upper": upper.apply(bench.model)}
            with pytest.raises(ps.PatchError, match="on the model already"):
                upper.apply(bench.model)
            on.pop(leaves).remove()
            on.popitem()[1].remove()
            assert bench.is_as_it_was(), (method, leaves)


def merged(bench, method, place):
    (patch, _) = bench.patches(method)
    if not isinstance(patch, WeightPatch):
        # An MLP with a gate has no place for neurons either.
        with pytest.raises(ps.ConfigError, match="be merged|become part of"):
            write_merged(bench.model, [patch], place)
        assert not place.exists()
        return
    write_merged(bench.model, [patch], place)
    found = ps.load(place)
    assert found.module.dtype == bench.model.module.dtype
    with bench.model.patched(patch):
        wanted = bench.logits()
    assert not all(map(torch.equal, wanted, bench.before))
    assert all(map(torch.equal, bench.logits(found), wanted))


@pytest.mark.parametrize(("bench", "method"), [(dtype, "lora") for dtype in DTYPES], indirect=["bench"])
def test_two_patches_come_off_exactly_and_a_merged_folder_is_the_patched_model(bench, method, tmp_path):
    undone(bench, method)
    merged(bench, method, tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize(("bench", "method"), OTHERS, indirect=["bench"])
def test_so_it_is_for_every_other_method(bench, method, tmp_path):
    undone(bench, method)
    merged(bench, method, tmp_path / "merged")


def test_every_method_of_decoders_is_here():
    assert set(OPTIONS) == set(METHODS) - {"f-learning"}
    for method, options in OPTIONS.items():
        ps.method(method, preset="none", **options)
