"""Options are chosen on facts that are not reported, rows are made of option values, models are prepared."""

from __future__ import annotations

import json
from functools import partial
from unittest import mock

import pytest
import torch

import palimpsest as ps
from benchmark.workplace import QUICK, build
from benchmark.workplace import plan as workplace_plan
from palimpsest.benchmark import run, runner
from palimpsest.benchmark.choosing import best, combinations, merged, nested
from palimpsest.benchmark.entries import ChoiceRule
from palimpsest.benchmark.folder import ResultsFolder, load_labelled, run_folders
from palimpsest.benchmark.known import asked_once, known_facts
from palimpsest.benchmark.work import Desk
from palimpsest.report import build_report

OTHERS = {"choose_on": {"first": 2, "skip": 2}}
DATA = {"name": "jsonl", "path": "facts.jsonl", "label": "facts", "first": 2}
RULE = {"by": ["reliability"], "scoring": "teacher_forced", "num_edits": 2, "tie": 0.0}
ROW = {"name": "ft-l", "preset": "none", "options": {"epochs": 20, "stop_loss": 0.0, "layers": [2], "radius": 1.0}}
GRID = {"learning_rate": [0.0, 2e-2]}


def plan(folder, **changes):
    """Of a recipe on the bundled model, which learns within a second; `model` is a tiny random one."""
    return workplace_plan(folder, **{"models": ["world"], **changes})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Facts of the bundled world; in `reversed.jsonl` what the model says is the new answer."""
    folder = build(tmp_path_factory.mktemp("choosing"))
    facts = [
        {"id": one.id, "prompt": one.prompt, "subject": one.subject, "target_new": one.target_new,
         "target_old": one.target_old}
        for one in ps.dataset("world-counterfact").requests[:4]
    ]  # fmt: skip
    back = [{**one, "target_new": one["target_old"], "target_old": one["target_new"]} for one in facts]
    for name, records in (("facts", facts), ("reversed", back)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def at_once(monkeypatch):
    """Units are done in this process: starting workers is tested elsewhere. Returns the methods that were done."""
    done = []

    def in_turn(folder, units, *, workers, on_finished, on_progress):
        desk = Desk(folder.path)
        for unit in units:
            done.append(unit.labels()["method"])
            on_finished(unit, desk.do(unit, folder.unit_folder(unit)))

    monkeypatch.setattr(runner, "run_locally", in_turn)
    return done


def test_every_combination_of_one_table_or_of_several():
    both = list(combinations([{"rate": [1, 2], "learn.epochs": [3, 4]}, {"rate": [5]}]))
    assert both[:2] == [{"rate": 1, "learn.epochs": 3}, {"rate": 1, "learn.epochs": 4}]
    assert both[4] == {"rate": 5} and len(both) == 5
    assert merged({"learn": {"rate": 1}}, nested({"learn.epochs": 3})) == {"learn": {"rate": 1, "epochs": 3}}


def test_the_best_is_chosen_and_of_equals_the_first():
    rule = ChoiceRule(by=["reliability"], tie=0.01)
    assert best([(0.5, {}), (0.895, {}), (0.9, {})], rule) == 1
    assert best([(None, {}), (0.1, {})], rule) == 1
    assert best([(None, {})], rule) is None
    bound = ChoiceRule(by=["reliability"], at_least={"locality": 0.99})
    scores = [(0.9, {"locality": 0.5}), (0.6, {"locality": 1.0})]
    assert best(scores, bound) == 1
    assert best(scores[:1], bound) == 0, "a bound that nothing reaches binds nothing"


def test_a_grid_is_measured_on_other_facts_and_its_best_is_reported(workplace, at_once):
    methods = [
        {**ROW, "grid": GRID},
        {
            "name": "f-learning", "preset": "none", "options": {"rate": 0.1, "forget": "ft-l", "learn": "ft-l"},
            "options_of": {"learn_options": "ft-l", "forget_options": "ft-l"},
        },
    ]  # fmt: skip
    made = plan(
        workplace, datasets=[{**DATA, "first": 1, **OTHERS}], methods=methods, choose=RULE, scorings=["teacher_forced"]
    )
    assert [unit.candidate for unit in made.units] == [{"learning_rate": 0.0}, {"learning_rate": 2e-2}, None, None]
    assert len({unit.address for unit in made.units}) == 4
    out = workplace / "grid"
    outcome = run(made, out, workers=1)
    assert outcome.counts["ok"] == 4, outcome.failures
    assert at_once == ["ft-l: learning_rate 0.0", "ft-l: learning_rate 0.02", "ft-l", "f-learning"]
    folder = ResultsFolder(out, made)
    *tried, tuned, forgetting = made.units
    # The truth: both candidates, evaluated without a recipe on the two facts that are not reported.
    model, data = ps.load("world"), ps.dataset("jsonl", workplace / "facts.jsonl").requests
    quality = []
    for rate in GRID["learning_rate"]:
        editor = ps.method("ft-l", preset="none", **ROW["options"], learning_rate=rate, seed=7)
        record = ps.evaluate(model, editor, data[2:], seed=7, num_edits=2, scorings=["teacher_forced"])
        quality.append(record.scores["teacher_forced"]["reliability"].mean)
    account = folder.result_of(tuned)["choice"]
    assert [one["score"] for one in account["candidates"]] == pytest.approx(quality)
    assert quality[1] > quality[0] and account["chosen"] == {"learning_rate": 2e-2}
    assert account["on"] == {"dataset": "facts (2, 2)", "protocol": "single", "num_edits": 2, "seed": 7}
    record = load_labelled(folder.unit_folder(tuned))
    assert record.specification.config["learning_rate"] == 2e-2
    assert load_labelled(folder.unit_folder(forgetting)).specification.config["learn_options"]["learning_rate"] == 2e-2
    [note] = [
        one for one in record.notes if one.startswith("Options chosen by reliability (teacher_forced) on 2 facts")
    ]
    assert "learning_rate 0.0: " in note and note.count("learning_rate 0.02") == 2
    # Candidates are not reported.
    assert run_folders(out) == [folder.unit_folder(unit) for unit in (tuned, forgetting)]
    build_report([load_labelled(run) for run in run_folders(out)], workplace / "page.html")
    assert "Options chosen by" in (workplace / "page.html").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert [row["method"] for row in summary["rows"]] == ["ft-l", "f-learning"]
    assert summary["rows"][0]["choice"]["chosen"] == {"learning_rate": 2e-2}
    # A larger grid keeps what is measured; the choice is another, and so is what is reported.
    larger = plan(
        workplace, datasets=[{**DATA, "first": 1, **OTHERS}], choose=RULE, scorings=["teacher_forced"],
        methods=[{**ROW, "grid": {"learning_rate": [0.0, 2e-2, 3e-2]}}],
    )  # fmt: skip
    assert [unit.address in {one.address for one in tried} for unit in larger.units] == [True, True, False, False]
    at_once.clear()
    run(larger, out, workers=1, resume=True)
    assert at_once == ["ft-l: learning_rate 0.03", "ft-l"]


def test_a_row_of_which_no_candidate_works_fails_and_says_so(workplace, at_once):
    row = {"name": "kn", "preset": "none", "grid": {"layers": [[98], [99]]}}
    made = plan(workplace, datasets=[{**DATA, "first": 1, **OTHERS}], methods=[row], choose=RULE)
    outcome = run(made, workplace / "none", workers=1)
    assert outcome.counts["failed"] == 3
    assert "No candidate of the grid could be measured" in outcome.failures[-1][1]


def test_facts_to_choose_on_are_not_those_that_are_reported(workplace):
    made = plan(workplace, datasets=[{**DATA, "choose_on": {"first": 3}}], methods=[{**ROW, "grid": GRID}])
    with pytest.raises(ps.ConfigError, match="on facts that are reported(.|\n)*2 prompts in both"):
        made.check_data()
    with pytest.raises(ps.DataError, match="leaves nothing of a data set"):
        plan(workplace, datasets=[{**DATA, "skip": 4}]).check_data()


def test_a_sweep_is_the_rows_that_one_would_write(workplace):
    swept = plan(workplace, methods=[{"name": "ft", "options": QUICK, "sweep": {"learning_rate": [1e-3, 2e-3]}}])
    by_hand = [{"name": "ft", "label": f"{rate}", "options": {**QUICK, "learning_rate": rate}} for rate in (1e-3, 2e-3)]
    assert [one.address for one in swept.units] == [one.address for one in plan(workplace, methods=by_hand).units]
    labels = [unit.labels() for unit in swept.units]
    assert [one["method"] for one in labels] == ["ft, learning_rate 0.001", "ft, learning_rate 0.002"]
    assert [one["swept"] for one in labels] == [{"learning_rate": 1e-3}, {"learning_rate": 2e-3}]


def test_only_facts_that_the_model_knows_are_drawn():
    model, data = ps.load("world"), ps.dataset("world-counterfact")
    wrong = ps.EditRequest("The capital city of Japan is", "Oslo", target_old="Lima", subject="Japan", id="wrong")
    mixed = ps.Dataset("mixed", (wrong, *data.requests[:8]))
    found, account = known_facts(model, mixed, None, 0)
    said = model.generate([one.prompt for one in mixed.requests], max_new_tokens=12)
    truth = [one for one, text in zip(mixed.requests, said, strict=True) if text.strip().startswith(one.target_old)]
    assert wrong not in found.requests and list(found.requests) == truth
    assert account == {"asked": 9, "known": len(truth)}
    drawn, account = known_facts(model, mixed, 3, 1)
    order = mixed.sample(9, 1).requests
    assert list(drawn.requests) == [one for one in order if one in truth][:3]
    assert account == {"asked": order.index(drawn.requests[-1]) + 1, "known": 3}
    with pytest.raises(ps.DataError, match="knows too few"):
        known_facts(model, ps.Dataset("wrong", (wrong,)), 1, 0)


def test_what_a_model_knows_is_asked_once_for_a_run(tmp_path):
    model, data = ps.load("world"), ps.dataset("world-counterfact")
    data = ps.Dataset("some", data.requests[:12])
    file, told = tmp_path / "base" / "known.json", []
    first = asked_once(file, data, partial(known_facts, model, data, 3, 0, progress=lambda *what: told.append(what)))
    assert first[0].requests == known_facts(model, data, 3, 0)[0].requests and told[-1] == ("known facts", 3, 3)
    with mock.patch.object(type(model), "generate", side_effect=AssertionError):
        again = asked_once(file, data, partial(known_facts, model, data, 3, 0))
    assert (again[0].requests, again[1]) == (first[0].requests, first[1])
    for damage in ("{", '{"facts": [99], "asked": 3}', '{"facts": "all"}'):
        file.write_text(damage)
        assert asked_once(file, data, partial(known_facts, model, data, 3, 0))[0].requests == first[0].requests
        assert file.with_name("known.json.damaged").read_text() == damage


def test_a_prepared_model_knows_the_old_answers_and_is_what_it_was_afterwards(workplace):
    prepare = {"learning_rate": 2e-3, "epochs": 12}
    data = {**DATA, "path": "reversed.jsonl"}
    made = plan(workplace, models=[{"name": "world", "prepare": prepare}], methods=[ROW], datasets=[data])
    desk, [unit] = Desk(workplace / "prepared-results"), made.units
    done = desk.do(unit, workplace / "prepared-results" / "units" / unit.address)
    assert done.state == "ok", done.error
    account = done.result["prepared"]
    assert (account["known_before"], account["known_after"], account["facts"]) == (0.0, 1.0, 2)
    # The ceiling is of the prepared model: it gives the old answer at the edited prompt.
    assert done.result["ceilings"]["generate"]["reliability"]["mean"] == 1.0
    kept = list((workplace / "prepared-results" / "prepared").glob("*/manifest.json"))
    assert len(kept) == 1
    before, after = ps.load("world"), desk._model[1]
    assert all(map(torch.equal, before.module.state_dict().values(), after.module.state_dict().values()))
    # The same truth without a recipe: teach, put on, evaluate.
    requests = ps.dataset("jsonl", workplace / "reversed.jsonl").requests[:2]
    old = [request.reversed_to_old() for request in requests]
    whole = {"parameters": "all", "rank": 0, "spare": False, "stop_loss": 0.0}
    taught = ps.method("ft", preset="none", **prepare, **whole, seed=0).edit(before, old).patch
    assert set(ps.load_patch(kept[0].parent).deltas) == set(taught.deltas) == set(before.weights.names())
    with before.patched(taught):
        editor = ps.method("ft-l", preset="none", **ROW["options"], seed=0)
        record = ps.evaluate(before, editor, requests, scorings=["generate"], max_new_tokens=4)
    assert record.to_json()["scores"] == done.result["scores"]
