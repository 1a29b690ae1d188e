"""Patches of every kind share one stack: what is hooked beside modules, and who answers a prompt."""

import torch

from palimpsest.models.routing import Route
from palimpsest.patches.base import Manifest, Patch
from palimpsest.patches.storage import KINDS, load_patch
from tiny import tiny_model

PROMPTS = ["Anna Berg lives in", "the river is", "Anna Berg works for"]


def _same(first, second):
    return all(
        torch.equal(torch.tensor(a.log_probs), torch.tensor(b.log_probs)) for a, b in zip(first, second, strict=True)
    )


class Doubling(Patch):
    """Doubles the output of one module, and takes down where the prompts end that it sees."""

    kind = "modules"

    def __init__(self, label="doubling", site="mlp.down"):
        self.manifest, self.site, self.seen = Manifest(label=label), site, []

    def put_on(self, model):
        def install():
            module = model.sites.module(self.site, 1)

            def doubled(_module, _args, output):
                self.seen.append(None if model.reading is None else model.reading.prompt_ends.tolist())
                return 2 * output

            return [module.register_forward_hook(doubled)]

        return model.weights.push(self.manifest.label, {}, origin=self, install=install)

    def tensors(self):
        return {"factor": torch.tensor([2.0])}

    def payload(self):
        return {"site": self.site}

    @classmethod
    def from_saved(cls, tensors, manifest, parts):
        patch = cls(manifest.label, manifest.payload["site"])
        patch.manifest = manifest
        return patch

    def touched(self):
        return [self.site]

    def is_empty(self):
        return False


def _routed(model, router, label="routed"):
    return model.weights.push(label, {}, router=router)


def test_hooks_are_inert_beside_the_base_model_and_come_off_exactly():
    model, patch = tiny_model("gptj"), Doubling()
    targets = ["Paris"] * len(PROMPTS)
    before = model.score(PROMPTS, targets)
    with model.patched(patch):
        during = model.score(PROMPTS, targets)
        with model.weights.without_changes():
            assert _same(model.score(PROMPTS, targets), before)
        assert _same(model.score(PROMPTS, targets), during)
    assert not _same(during, before)
    assert _same(model.score(PROMPTS, targets), before)
    assert not model.sites.module("mlp.down", 1)._forward_hooks


def test_hooks_know_where_prompts_end_when_scoring_and_when_generating():
    model, patch = tiny_model("gptj"), Doubling()
    lengths = [len(model.encode(prompt).prompt_ids) for prompt in PROMPTS]
    with model.patched(patch):
        model.score(PROMPTS, ["Paris"] * len(PROMPTS))
        assert sorted(patch.seen[0]) == sorted(length - 1 for length in lengths)
        patch.seen.clear()
        model.generate(PROMPTS, max_new_tokens=3)
    # Padded on the left, all of them end in the last column, at every step.
    assert {tuple(ends) for ends in patch.seen} == {(max(lengths) - 1,) * len(PROMPTS)}
    assert model.reading is None


def test_a_patch_of_another_kind_is_saved_and_read_by_its_kind(tmp_path, monkeypatch):
    import palimpsest.patches.storage as storage

    monkeypatch.setattr(storage, "KINDS", {**KINDS, "modules": Doubling})
    Doubling("twice", "mlp.up").save(tmp_path / "patch")
    read = load_patch(tmp_path / "patch")
    assert (read.manifest.kind, read.manifest.label, read.site) == ("modules", "twice", "mlp.up")


def test_a_prompt_is_answered_where_its_route_leads():
    model, other = tiny_model("gptj"), tiny_model("llama", seed=3)
    asked = []

    def router(prompts):
        asked.append(list(prompts))
        return [
            Route("so: " + prompt) if "lives" in prompt else Route(prompt, other) if "works" in prompt else None
            for prompt in prompts
        ]

    targets = ["Paris", "Rome", "Oslo"]
    own = model.score(PROMPTS, targets)
    # Each model reads what goes to it in one batch; in another batch the last bits may differ.
    routed = model.score(["so: " + PROMPTS[0], PROMPTS[1]], targets[:2]) + other.score(PROMPTS[2:], targets[2:])
    texts = [model.generate("so: " + PROMPTS[0]), model.generate(PROMPTS[1]), other.generate(PROMPTS[2])]
    layer = _routed(model, router)
    assert _same(model.score(PROMPTS, targets), routed)
    assert model.generate(PROMPTS) == texts
    assert asked == [PROMPTS, PROMPTS]
    assert model.generate(PROMPTS[0]) == texts[0]
    with model.weights.without_changes():
        assert _same(model.score(PROMPTS, targets), own)
    model.weights.remove(layer)
    assert _same(model.score(PROMPTS, targets), own)


def test_the_uppermost_router_has_the_first_word_and_leaves_the_rest_to_those_below():
    model = tiny_model("gptj")
    _routed(model, lambda prompts: [Route("below: " + prompt) for prompt in prompts], "below")
    _routed(model, lambda prompts: [Route("above") if "river" in prompt else None for prompt in prompts], "above")
    found = model.score(PROMPTS, ["Paris"] * 3)
    with model.weights.without_routers():
        wanted = model.score(["below: " + PROMPTS[0], "above", "below: " + PROMPTS[2]], ["Paris"] * 3)
    assert _same(found, wanted)
