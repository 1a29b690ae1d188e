"""A damaged line of a run costs its own unit; a patch and its state appear together; cards show texts as they are."""

import json
import os
import re

import pytest
import torch

import tiny
from palimpsest.errors import DataError, OutputError
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.journal import RECORDS, Journal, Unit
from palimpsest.evaluation.records import ProbeResult
from palimpsest.evaluation.runner import _measures, _perplexity
from palimpsest.files import write_json
from palimpsest.methods.outcomes import Diagnostics, EditOutcome
from palimpsest.methods.states import EditedQueries
from palimpsest.models import AnswerRoom
from palimpsest.patches.base import Manifest
from palimpsest.patches.card import CARD, Contents, card, plain
from palimpsest.patches.weights import Dense, WeightPatch
from palimpsest.statistics.cache import Cache


def journal_of(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    for name in names:
        probes = [
            ProbeResult(edit_id=name, kind=kind, prompt="p", target_new="t", values={"generate": 1.0})
            for kind in ("reliability", "generality")
        ]
        journal.add(Unit(unit=name), [] if name == "base" else probes)
    return journal


NAMES = ["base", "edit-0", "edit-1", "edit-2"]


@pytest.mark.parametrize(
    ("line", "lost"),
    [(0, {"base"}), (1, {"edit-0"}), (3, {"edit-0"}), (4, {"edit-1"}), (6, {"edit-1"}), (7, {"edit-2"})],
)
def test_a_damaged_line_costs_its_own_unit(tmp_path, line, lost):
    journal_of(tmp_path, NAMES)
    file = tmp_path / RECORDS
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    lines[line] = "{ damaged\n"
    file.write_text("".join(lines))
    again = Journal(tmp_path)
    again.take_over()
    assert set(NAMES) - set(again.units) == lost
    assert [one.split(": ")[0] for one in again.damaged] == [f"{file}:{line + 1}"]
    for name in lost:
        journal_of(tmp_path / "other", [name])
        again.add(Unit(unit=name), journal_of(tmp_path / "third" / name, [name]).results[name])
    again.put_in_order()
    assert file.read_text() == whole


def test_a_share_that_is_none_is_a_damaged_line(tmp_path):
    journal_of(tmp_path, NAMES)
    file = tmp_path / RECORDS
    lines = file.read_text().splitlines(keepends=True)
    for field, value in (
        ("ceiling", {"generate": 1e308}),
        ("leak", 2),
        ("degenerate", -1),
        ("values", {"generate": 7}),
    ):
        changed = json.dumps({**json.loads(lines[4]), field: value}) + "\n"
        file.write_text("".join([*lines[:4], changed, *lines[5:]]))
        again = Journal(tmp_path)
        again.take_over()
        assert set(NAMES) - set(again.units) == {"edit-1"} and field in again.damaged[0]


def test_a_mean_of_what_is_too_large_to_be_added_up_is_what_it_is():
    units = [Unit(unit=name, perplexity=1e308, patch_bytes=1, measures={"a": -1e308}) for name in NAMES]
    assert _perplexity(units, 4)[0]["after"] == 1e308
    assert _measures(units) == {"a": {"before": -1e308, "after": -1e308}}


def test_a_lost_line_is_noticed_and_a_tail_is_cut_off(tmp_path):
    journal_of(tmp_path, NAMES)
    file = tmp_path / RECORDS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:1], *lines[2:]]))
    again = Journal(tmp_path)
    again.take_over()
    assert list(again.units) == ["base", "edit-1", "edit-2"] and "lacks some of its lines" in again.damaged[0]
    file.write_text("".join(lines[:-1]) + '{"unit": "edit-2", "do')
    tail = Journal(tmp_path)
    tail.take_over()
    assert list(tail.units) == NAMES[:3] and tail.damaged == []
    assert file.read_text() == "".join(lines[:7])


def test_a_chain_is_taken_up_before_the_damage(tmp_path):
    names = ["base", "edits-1-1", "checkpoint-1", "edits-2-10", "checkpoint-10"]
    journal_of(tmp_path, names)
    lines = (tmp_path / RECORDS).read_text().splitlines(keepends=True)
    lines[5] = "\n"
    (tmp_path / RECORDS).write_text("".join(lines))
    again = Journal(tmp_path)
    again.take_over(is_chain=True)
    assert list(again.units) == names[:2]


def test_damaged_answers_are_put_aside(tmp_path):
    file = tmp_path / "base.json"
    file.write_text('{"model": null, "generated": [')
    BaseAnswers().absorb(file)
    assert [one.name for one in tmp_path.iterdir()] == ["base.json.damaged"]


def test_hundreds_of_answers_are_taken_over(tmp_path):
    model, base = tiny.tiny_model("gpt2"), BaseAnswers()
    base.belong_to(model)
    pairs = [(f"Mr. A. B. Clay No. {number} is", " Lyon. Oslo.") for number in range(120)]
    base.generate(model, [prompt for prompt, _ in pairs], AnswerRoom(4), forward_batch_size=64)
    base.score(model, pairs, forward_batch_size=64)
    write_json(tmp_path / "base.json", base.to_dict())
    again = BaseAnswers()
    again.belong_to(model)
    again.absorb(tmp_path / "base.json")
    assert again.to_dict() == base.to_dict() and again.num_known == 240


def outcome(value):
    patch = WeightPatch({"w": Dense(torch.full((2, 2), value))}, Manifest(label="p"))
    return EditOutcome(patch, EditedQueries(torch.full((1, 2), value)), Diagnostics())


def test_a_patch_and_its_state_appear_together(tmp_path):
    state = tmp_path / "state"
    outcome(1.0).save(tmp_path / "one", state=state)
    assert float(EditedQueries.load(state).queries[0, 0]) == 1.0
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        outcome(2.0).save(tmp_path / "taken", state=state)
    assert float(EditedQueries.load(state).queries[0, 0]) == 1.0
    with pytest.raises(OutputError, match="a folder"):
        outcome(2.0).save(tmp_path / "two", state=tmp_path / "one")
    for inside in (tmp_path / "two", tmp_path / "two" / "state"):
        with pytest.raises(OutputError, match="the same place"):
            outcome(2.0).save(tmp_path / "two", state=inside)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one", "state", "taken"]


@pytest.mark.parametrize(("at", "value"), [("before", 1.0), ("after", 2.0)])
def test_a_kill_between_the_two_is_settled_by_the_next(tmp_path, monkeypatch, at, value):
    state, out = tmp_path / "state", tmp_path / "two"
    outcome(1.0).save(tmp_path / "one", state=state)
    names = []
    real = os.rename if at == "before" else os.replace

    def killed(source, target, **options):
        names.append(str(target))
        if str(target) == str(out if at == "before" else state):
            os._exit(9)
        real(source, target, **options)

    number = os.fork()
    if not number:
        setattr(os, "rename" if at == "before" else "replace", killed)
        outcome(2.0).save(out, state=state)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 9
    assert out.exists() == (at == "after")
    assert float(EditedQueries.load(state).queries[0, 0]) == value
    assert not list(tmp_path.glob(".*.pending"))


def test_a_state_that_is_damaged_is_named(tmp_path):
    (tmp_path / "state").write_bytes(b"nothing")
    with pytest.raises(DataError, match="state cannot be read"):
        EditedQueries.load(tmp_path / "state")


def test_a_damaged_entry_of_the_cache_is_put_aside_and_one_that_cannot_be_kept_is_noted(tmp_path):
    cache, identity = Cache(tmp_path), {"kind": "x"}
    cache.write(identity, {"a": torch.ones(2)})
    assert cache.read(identity, lambda entry: float(entry.tensors["a"].sum())) == 2.0
    assert cache.read(identity, lambda entry: entry.tensors["b"]) is None
    assert [one.name.endswith(".damaged") for one in (tmp_path / "statistics").iterdir()] == [True]
    assert "no field 'b'" in cache.notes[0] and not cache.records()
    (tmp_path / "file").write_text("")
    other = Cache(tmp_path / "file" / "below")
    other.write(identity, {"a": torch.ones(2)})
    assert "could not be kept" in other.notes[0]
    with pytest.raises(OutputError):
        Cache(tmp_path / "file" / "below", is_required=True).write(identity, {"a": torch.ones(2)})


def test_nothing_in_a_card_is_more_than_text():
    evil = "![x](https://e.org/a.png) [y](javascript:z) <img src=x> `code` |cell| $m$ **b** www.e.org a@e.org \\"
    name = '"); import os; os.system("ls") #'
    manifest = Manifest(label=evil, model=name, edits=[{"prompt": evil, "target_new": evil}])
    text = card(Contents(form="patch", base=name, patches=[manifest]))
    snippet = text.split("```python\n")[1].split("```")[0]
    compile(snippet, CARD, "exec")
    assert f"ps.load({json.dumps(name)})" in snippet and f"generate({json.dumps(evil)})" in snippet
    table = text.replace(snippet, "").partition("## The edits")[2].partition("## How they were made")[0]
    for live in (r"\[", r"\*", r"`", r"\$", r"\|cell", r":javascript", r"https:", r"www\.", r"a@"):
        assert not re.search(rf"(?<!\\){live}", table), live
    assert "<img" not in table and "img src" in table
    assert plain("https://e.org") == "https\\://e.org"
    assert plain("The capital of France is") == "The capital of France is"
