"""The three protocols against doing the same by hand; the model is itself again afterwards, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from evaluation.head_editor import HeadEditor, facts
from palimpsest import Batch, ConfigError, DataError, EditRequest, Probe, Sequential, Single, evaluate, method
from palimpsest.evaluation import DEFAULT_SCORINGS as SCORINGS
from palimpsest.evaluation import BaseAnswers, RunRecord
from palimpsest.evaluation.drift import MAX_SENTENCES, perplexity
from palimpsest.evaluation.examiner import room_for
from palimpsest.evaluation.ordinary import ORDINARY
from palimpsest.models.generation import written_answers

SHORT: dict[str, Any] = {"max_new_tokens": 6}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def said(model: Any, data: Any, prompt: str) -> str:
    """What the model writes after one prompt, as evaluation has it written."""
    [text] = written_answers(model, [prompt], room_for(model, getattr(data, "requests", data), SHORT["max_new_tokens"]))
    return text


def is_same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.module.state_dict()
    return all(torch.equal(now[name], tensor) for name, tensor in before.items()) and not model.weights.labels


def generated(record: RunRecord, phase: str = "final", checkpoint: int | None = None) -> list[str | None]:
    return [r.after for r in record.probes if r.phase == phase and checkpoint in (None, r.checkpoint)]


def test_single_is_each_edit_alone() -> None:
    model, data = tiny.tiny_model("gptj"), facts(4)
    before = weights(model)
    record = evaluate(model, HeadEditor(), data, protocol=Single(), **SHORT)
    assert is_same(model, before)
    by_hand, drifts = [], []
    for request in data.requests:
        with model.patched(HeadEditor().edit(model, [request]).patch):
            by_hand += [said(model, data, probe.prompt) for probe in request.all_probes()]
            drifts.append(perplexity(model, data.neutral_text))
    assert generated(record) == by_hand
    assert record.scores["generate"]["reliability"].mean == 1.0
    assert record.scores["generate"]["locality.neighborhood"].n == 4
    assert record.perplexity["after"] == pytest.approx(sum(d for d in drifts if d) / 4, rel=1e-6)
    assert record.perplexity["median"] == pytest.approx(sum(sorted(d for d in drifts if d)[1:3]) / 2, rel=1e-6)
    assert record.perplexity["before"] == pytest.approx(perplexity(model, data.neutral_text), rel=1e-6)
    assert (record.perplexity["n"], record.status, record.counts["left_out"]) == (3, "ok", 0)


@pytest.mark.parametrize("size", [None, 3])
def test_batch_edits_a_group_in_one_call(size: int | None) -> None:
    model, data, editor = tiny.tiny_model("gptj"), facts(4), HeadEditor()
    before = weights(model)
    record = evaluate(model, editor, data, protocol=Batch(size), **SHORT)
    assert is_same(model, before)
    assert editor.calls == ([("e0", "e1", "e2", "e3")] if size is None else [("e0", "e1", "e2"), ("e3",)])
    by_hand = []
    for start in range(0, 4, size or 4):
        group = data.requests[start : start + (size or 4)]
        with model.patched(HeadEditor().edit(model, group).patch):
            by_hand += [said(model, data, probe.prompt) for request in group for probe in request.all_probes()]
    assert generated(record) == by_hand


def test_sequential_stacks_and_tests_at_once_and_at_checkpoints() -> None:
    model, data, editor = tiny.tiny_model("gptj"), facts(4), HeadEditor()
    before = weights(model)
    record = evaluate(model, editor, data, protocol=Sequential(checkpoints=[2, 50]), **SHORT)
    assert is_same(model, before)
    immediate, final, total = [], {}, None
    for done, request in enumerate(data.requests, start=1):
        with model.patched(total) if total else model.patched(HeadEditor(steps=0).edit(model, [request]).patch):
            patch = HeadEditor().edit(model, [request]).patch
        total = total + patch if total else patch
        with model.patched(total):
            immediate += [said(model, data, p.prompt) for p in request.all_probes()[:2]]
            probes = [p for r in data.requests[:done] for p in r.all_probes()]
            final[done] = [said(model, data, p.prompt) for p in probes]
    assert generated(record, "immediate") == immediate
    assert generated(record, checkpoint=2) == final[2]
    assert generated(record, checkpoint=4) == final[4]
    assert [point.num_edits for point in record.checkpoints] == [2, 4]
    assert record.immediate["generate"]["reliability"].mean == 1.0
    assert record.scores == record.checkpoints[-1].scores
    assert record.scores["generate"]["reliability"].n == 4
    assert record.patch_bytes == total.num_bytes  # type: ignore[union-attr]
    assert record.checkpoints[-1].patch_norm == pytest.approx(total.norm())  # type: ignore[union-attr]
    assert record.checkpoints[0].patch_norm < record.checkpoints[1].patch_norm  # type: ignore[operator]


def test_sequential_keeps_one_patch_on_the_model() -> None:
    model, data = tiny.tiny_model("gptj"), facts(6)
    depths = []

    class Watching(HeadEditor):
        def edit(self, model: Any, requests: Any, state: Any = None, *, progress: Any = None) -> Any:
            depths.append(len(model.weights.labels))
            return super().edit(model, requests, state)

    evaluate(model, Watching(), data, protocol=Sequential(), **SHORT)
    assert depths == [0, 1, 1, 1, 1, 1]


def test_sequential_passes_state_and_edits_in_batches() -> None:
    model, data, editor = tiny.tiny_model("gptj"), facts(5), HeadEditor(carries_state=True)
    record = evaluate(model, editor, data, protocol=Sequential(checkpoints=(1, 3), batch_size=2), **SHORT)
    assert editor.calls == [("e0", "e1"), ("e2", "e3"), ("e4",)]
    assert editor.states == [None, 1, 2]
    assert [point.num_edits for point in record.checkpoints] == [2, 4, 5]


@pytest.mark.parametrize("protocol", [Single(), Batch(1), Sequential()])
def test_a_failing_edit_is_counted_and_the_run_goes_on(protocol: Any) -> None:
    model, data = tiny.tiny_model("gptj"), facts(4)
    record = evaluate(model, HeadEditor(failing=("e1",)), data, protocol=protocol, **SHORT)
    assert record.status == "ok"
    assert [failure.edit_ids for failure in record.failed_edits] == [["e1"]]
    assert "This edit cannot be made" in record.failed_edits[0].error
    assert record.scores["generate"]["reliability"].n == 3
    assert record.counts["failed"] == 5 * len(SCORINGS)
    assert "1 edit(s) could not be made" in " ".join(record.notes)
    nothing = evaluate(model, HeadEditor(failing=("e0", "e1", "e2", "e3")), data, protocol=protocol, **SHORT)
    assert nothing.status == "failed"
    assert "This edit cannot be made" in (nothing.error or "")
    assert nothing.scores["generate"] == {}
    assert "failed" in nothing.table()


def test_mistakes_in_a_program_propagate_and_leave_the_model_alone() -> None:
    model, data = tiny.tiny_model("gptj"), facts(4)
    before = weights(model)

    class Wrong(HeadEditor):
        def edit(self, model: Any, requests: Any, state: Any = None, *, progress: Any = None) -> Any:
            if len(self.calls) == 2:
                raise ValueError("wrong")
            return super().edit(model, requests, state)

    for protocol in (Single(), Sequential()):
        with pytest.raises(ValueError, match="wrong"):
            evaluate(model, Wrong(), data, protocol=protocol, **SHORT)
        assert is_same(model, before)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, HeadEditor(interrupt_at=3), data, protocol=protocol, **SHORT)
        assert is_same(model, before)


def test_locality_leaves_out_what_was_edited_so_far() -> None:
    model = tiny.tiny_model("gptj")
    france, italy = tiny.requests(2)
    about_italy = Probe("locality.neighborhood", "The language of Italy is")
    requests = [
        EditRequest(france.prompt, "Lyon", subject="France", probes=(about_italy,), id="a"),
        EditRequest(italy.prompt, "Milan", subject="Italy", id="b"),
    ]
    single = evaluate(model, HeadEditor(), requests, protocol=Single(), **SHORT)
    assert single.counts["left_out"] == 0
    batch = evaluate(model, HeadEditor(), requests, protocol=Batch(), **SHORT)
    assert batch.counts["left_out"] == len(SCORINGS)
    assert "locality.neighborhood" not in batch.scores["generate"]
    assert "mentions a subject" in next(iter(batch.unscored["generate"]["locality.neighborhood"]))
    sequential = evaluate(model, HeadEditor(), requests, protocol=Sequential(checkpoints=(1,)), **SHORT)
    assert [point.counts["left_out"] for point in sequential.checkpoints] == [0, len(SCORINGS)]


def test_base_answers_are_computed_once_for_several_methods() -> None:
    model, data, base = tiny.tiny_model("gptj"), facts(3), BaseAnswers()
    first = evaluate(model, HeadEditor(), data, base=base, **SHORT)
    asked: list[int] = []
    original = model.generate
    model.generate = lambda prompts, **options: (asked.append(len(prompts)), original(prompts, **options))[1]  # type: ignore
    second = evaluate(model, HeadEditor(name="other"), data, base=base, **SHORT)
    assert asked == [5, 5, 5]  # one call for each edit, none for the base model
    assert [r.model_dump() for r in second.probes] == [r.model_dump() for r in first.probes]
    with pytest.raises(ConfigError, match="another model"):
        evaluate(tiny.tiny_model("gptj", seed=1), HeadEditor(), data, base=base, **SHORT)


def test_fewer_scorings_generate_nothing_that_is_not_needed() -> None:
    model, data = tiny.tiny_model("gptj"), facts(2)
    full = evaluate(model, HeadEditor(), data, **SHORT)
    part = evaluate(model, HeadEditor(), data, scorings=("log_prob",), **SHORT)
    assert part.scores["log_prob"] == full.scores["log_prob"]
    assert list(part.scores) == ["log_prob"]
    assert all(result.after is None for result in part.probes)
    part = evaluate(model, HeadEditor(), data, scorings=("teacher_forced",), **SHORT)
    assert part.scores["teacher_forced"] == full.scores["teacher_forced"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_edits": 9}, "does not have that many"),
        ({"scorings": ("generat",)}, "scoring"),
        ({"scorings": ()}, "No scoring"),
        ({"forward_batch_size": 0}, "too small"),
    ],
)
def test_bad_calls_are_refused_before_anything_is_computed(options: dict[str, Any], message: str) -> None:
    model, editor = tiny.tiny_model("gptj"), HeadEditor()
    with pytest.raises((DataError, ConfigError), match=message):
        evaluate(model, editor, facts(4), **options)
    with pytest.raises(DataError, match="same id"):
        evaluate(model, editor, [*facts(1).requests, *facts(1).requests])
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(model, editor, [])
    assert editor.calls == []


def test_an_editor_that_can_do_nothing_says_so_before_anything_is_computed() -> None:
    model, data = tiny.tiny_model("gptj"), facts(3)

    class Choosy(HeadEditor):
        def check(self, requests: Any) -> None:
            if len(requests) > 1 or requests[0].id in self.failing:
                raise ConfigError("One at a time, please.")

    asked: list[Any] = []
    with pytest.raises(ConfigError, match="One at a time"):
        evaluate(model, Choosy(), data, protocol=Batch(), progress=lambda *step: asked.append(step), **SHORT)
    with pytest.raises(ConfigError, match="One at a time"):
        evaluate(model, Choosy(failing=("e0", "e1", "e2")), data, **SHORT)
    assert asked == []
    assert evaluate(model, Choosy(failing=("e0", "e1")), data, **SHORT).counts["failed"] == 2 * 5 * len(SCORINGS)


def test_patches_that_are_on_the_model_belong_to_the_base() -> None:
    model, data = tiny.tiny_model("gptj"), facts(2)
    with model.patched(HeadEditor().edit(model, data.requests[:1]).patch):
        text = said(model, data, "Who wrote book 0?")
        record = evaluate(model, HeadEditor(), data, **SHORT)
        assert said(model, data, "Who wrote book 0?") == text
    assert record.specification.stacked_on == ["head"]
    assert [r.before for r in record.probes if r.prompt == "Who wrote book 0?"] == [text]


@pytest.mark.parametrize(("name", "options"), [("ft", {"parameters": "all", "spare": False}), ("lora", {})])
def test_the_methods_of_the_package_are_editors(name: str, options: dict[str, object]) -> None:
    model, data = tiny.tiny_model("gptj"), facts(2)
    before = weights(model)
    record = evaluate(model, method(name, **options), data, protocol=Sequential(), num_edits=2, **SHORT)
    assert is_same(model, before)
    assert record.specification.method == name
    assert record.specification.config["seed"] == 0
    assert record.immediate["log_prob"]["reliability"].mean == 1.0
    assert record.seconds_per_edit is not None
    assert record.seconds["total"] > record.seconds_per_edit > 0


@pytest.mark.parametrize("make", [lambda: Batch(0), lambda: Sequential(checkpoints=(0,)), lambda: Sequential((1,), -1)])
def test_protocols_refuse_unusable_numbers(make: Any) -> None:
    with pytest.raises(ConfigError, match="unusable value"):
        make()


def test_json_has_the_promised_shape_and_the_table_names_everything() -> None:
    model = tiny.tiny_model("gptj")
    stages: list[tuple[str, int, int]] = []
    options = {"num_edits": 3, "seed": 5, "progress": lambda *step: stages.append(step), **SHORT}
    record = evaluate(model, HeadEditor(), facts(4), **options)
    shape = record.to_json()
    assert list(shape) == [
        "method", "model", "dataset", "protocol", "num_edits", "seed", "status", "scores", "perplexity", "seconds",
        "seconds_per_edit", "peak_memory_bytes", "patch_bytes", "counts", "scoring_version", "ceilings",
    ]  # fmt: skip
    assert (shape["method"], shape["protocol"], shape["num_edits"], shape["seed"]) == ("head", "single", 3, 5)
    assert set(shape["scores"]) == set(SCORINGS)
    assert set(shape["scores"]["generate"]["reliability"]) == {"mean", "low", "high", "n"}
    assert {"statistics", "targets", "solve", "evaluation", "base_answers", "perplexity", "total"} <= set(
        shape["seconds"]
    )
    assert shape["seconds"]["targets"] == pytest.approx(0.75)
    assert shape["seconds"]["total"] == pytest.approx(sum(v for k, v in shape["seconds"].items() if k != "total"))
    assert shape["patch_bytes"] == model.module.lm_head.weight.numel() * 4
    counts = shape["counts"]
    assert counts["scored"] + counts["unscored"] + counts["failed"] + counts["left_out"] == len(SCORINGS) * 5 * 3
    table = record.table()
    for word in (
        "single protocol",
        "3 edits",
        "generate",
        "teacher_forced",
        "log_prob",
        "locality.out_of_scope",
        "(3)",
    ):
        assert word in table
    assert stages[-1] == ("edits", 3, 3)
    assert record.specification.dataset_fingerprint == facts(4).sample(3, 5).fingerprint


def test_a_sequential_run_has_checkpoints():
    with pytest.raises(ConfigError, match="no checkpoints"):
        Sequential(checkpoints=())


@pytest.mark.parametrize(("protocol", "is_asked"), [(Single(), False), (Batch(2), True), (Sequential((2,)), True)])
def test_ordinary_sentences_are_read_where_the_data_set_brings_none(protocol: Any, is_asked: bool) -> None:
    model, requests = tiny.tiny_model("gptj"), facts(2).requests
    record = evaluate(model, HeadEditor(), requests, protocol=protocol, **SHORT)
    expected = pytest.approx(perplexity(model, ORDINARY), rel=1e-6) if is_asked else None
    assert record.perplexity["before"] == expected
    assert (record.perplexity["after"] is not None) is is_asked
    assert len(set(ORDINARY)) == MAX_SENTENCES


def test_the_base_model_is_asked_in_parts_which_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, told = tiny.tiny_model("gptj"), facts(4), []
    whole = evaluate(model, HeadEditor(), data, **SHORT)
    monkeypatch.setattr("palimpsest.evaluation.runner._FACTS_AT_ONCE", 3)
    parts = evaluate(model, HeadEditor(), data, progress=lambda *where: told.append(where), **SHORT)
    assert [where for where in told if where[0] == "base answers"] == [("base answers", done, 4) for done in (0, 3, 4)]
    assert [probe.before for probe in parts.probes] == [probe.before for probe in whole.probes]
