import json
import shutil

import pytest

import tiny
from palimpsest import EditRequest, Probe, load, load_patch
from palimpsest.cli import comparing
from palimpsest.cli import world as worlds
from palimpsest.cli.inputs import parse_options
from palimpsest.methods.catalogue import METHODS
from palimpsest.methods.edited_keys import EditedKeys
from palimpsest.world import bundled_path

ESTIMATE = {"mean", "low", "high", "n"}


def test_options_are_toml_values():
    given = ["a=1", "b=1e-3", "c=true", "d=[1, 2]", 'e="x y"', "f=word", "g=2020-01-01", "h-i=3", "j.k=4", "j.l=5"]
    assert parse_options(given) == {
        "a": 1, "b": 1e-3, "c": True, "d": [1, 2], "e": "x y", "f": "word", "g": "2020-01-01", "h_i": 3,
        "j": {"k": 4, "l": 5},
    }  # fmt: skip


def test_edit_says_what_it_did(run, workplace, tmp_path, learn):
    facts = workplace / "facts.jsonl"
    result = run("edit", workplace / "model", "-m", "ft", "--edits", facts, "--out", tmp_path / "p", "--json", *learn)
    assert result.code == 0
    found = result.json()
    assert [one["after"] for one in found["edits"]] == [fact[3] for fact in tiny.FACTS]
    assert all(one["is_right"] for one in found["edits"])
    assert found["patch_bytes"] > 0
    assert found["config"]["learning_rate"] == 5e-3
    assert load_patch(tmp_path / "p").manifest.method == "ft"


def test_an_edit_given_inline_and_shown_as_a_table(run, workplace, tmp_path, learn):
    result = run(
        "edit", workplace / "model", "-m", "ft", "--prompt", "The capital of France is", "--subject", "France",
        "--target-new", "Lyon", "--out", tmp_path / "p", *learn,
    )  # fmt: skip
    assert result.code == 0
    for word in ("before", "after", "wanted", "Lyon", "yes", "1 of 1 edited prompts", "palimpsest verify"):
        assert word in result.out


def test_a_second_edit_goes_on_from_the_first_ones_patch_and_state(run, tmp_path):
    def edit(fact, *more):
        prompt, subject, _, new = fact
        words = ("--prompt", prompt, "--subject", subject, "--target-new", new, "-o", "layers=[1, 2]")
        words += ("-o", "statistics.max_tokens=4096", "-o", "strength=1", *more)
        return run("edit", "world", "-m", "alphaedit", "--state", tmp_path / "state", *words, "--json")

    facts = [
        ("The capital of France is", "France", "Paris", "Rome"),
        ("The capital of Italy is", "Italy", "Rome", "Paris"),
    ]
    for number, fact in enumerate(facts):
        below = [word for earlier in range(number) for word in ("--patch", tmp_path / str(earlier))]
        found = edit(fact, "--out", tmp_path / str(number), *below).json()
        assert found["edits"][0]["after"] == f"{fact[3]}."
    state = EditedKeys.load(tmp_path / "state")
    # The keys of both facts, six contexts each.
    assert {layer: len(keys.rows) for layer, keys in state.keys.items()} == {1: 12, 2: 12}
    assert load_patch(tmp_path / "1").manifest.stacked_on == ["alphaedit"]
    words = ("--prompt", "a", "--target-new", "b", "--out", tmp_path / "x")
    refused = run("edit", "world", "-m", "ft", "--state", tmp_path / "state", *words)
    assert refused.code != 0 and "keeps no state" in refused.err


def test_old_facts_that_are_not_known_are_said(run, workplace, tmp_path):
    facts = workplace / "facts.jsonl"
    result = run("edit", workplace / "model", "-m", "f-learning-ft", "--edits", facts, "--out", tmp_path / "p")
    assert result.code in (0, 1)  # What is asked here is not whether the edits hold.
    assert "note: The model knows 0 of 4 old facts. The others were left unforgotten" in result.out


def test_ask_shows_both_sides(run, workplace):
    prompts = [fact[0] for fact in tiny.FACTS[:2]]
    result = run("ask", workplace / "model", *prompts, "--patch", workplace / "patch", "--json")
    answers = result.json()["answers"]
    assert [one["after"] for one in answers] == ["Lyon", "Milan"]
    assert all(one["before"] != one["after"] for one in answers)
    assert all(ord(letter) >= 32 or letter == "\n" for letter in run("ask", workplace / "model", *prompts).out)


def test_ask_says_that_a_model_writes_nothing_and_what_may_help(run, workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "palimpsest.models.EditableModel.generate", lambda self, prompts, **options: [""] * len(prompts)
    )
    plain = run("ask", workplace / "model", "Who wrote Hamlet?")
    assert "(nothing)" in plain.out and "--chat" not in plain.out
    talks = shutil.copytree(workplace / "model", tmp_path / "talks")
    template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}<assistant>"
    (talks / "chat_template.jinja").write_text(template)
    assert "note: the model ends the text there; --chat asks it" in run("ask", talks, "Who wrote Hamlet?").out
    assert "--chat" not in run("ask", talks, "Who wrote Hamlet?", "--chat").out


def test_apply_writes_a_folder_that_answers_by_itself(run, workplace, tmp_path):
    out = tmp_path / "new"
    result = run("apply", workplace / "model", workplace / "patch", "--out", out, "--json")
    assert result.code == 0
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(result.json()["files"])
    assert load(str(out)).generate(tiny.FACTS[0][0]) == "Lyon"
    card = (out / "README.md").read_text()
    assert "| The capital of France is | Lyon | Paris |" in card
    assert "How to undo" in card


def test_apply_as_an_adapter(run, workplace, tmp_path):
    arguments = ("--method", "lora", "--edits", workplace / "facts.jsonl", "-o", "epochs=2")
    assert run("edit", workplace / "model", *arguments, "--out", tmp_path / "low-rank").code in (0, 1)
    result = run("apply", workplace / "model", tmp_path / "low-rank", "--out", tmp_path / "a", "--as", "peft", "--json")
    assert result.json()["files"] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "palimpsest.json",
    ]
    result = run("apply", workplace / "model", tmp_path / "low-rank", "--out", tmp_path / "b", "--as", "peft")
    assert "PeftModel.from_pretrained" in result.out


def test_verify_runs_the_patch_s_own_tests(run, workplace, tmp_path):
    good = run("verify", workplace / "model", workplace / "patch", "--json")
    assert good.code == 0
    assert good.json()["passed"] is True
    assert set(good.json()["scores"]["generate"]["reliability"]) == ESTIMATE
    facts = workplace / "facts.jsonl"
    weak = ("-o", "epochs=1", "-o", "learning_rate=1e-6")
    run("edit", workplace / "model", "-m", "ft", "--edits", facts, "--out", tmp_path / "weak", *weak)
    bad = run("verify", workplace / "model", tmp_path / "weak")
    assert bad.code == 1
    assert "failed: The capital of France is" in bad.out or "babbles: The capital of France is" in bad.out
    assert "NOT verified" in bad.out


def test_verify_thresholds(run, workplace, tmp_path, learn):
    probes = (Probe("generality", "France has the capital", "Lyon"), Probe("locality.neighborhood", "Spain is"))
    request = EditRequest("The capital of France is", "Lyon", subject="France", probes=probes)
    (tmp_path / "one.jsonl").write_text(json.dumps(request.to_dict()))
    run("edit", workplace / "model", "-m", "ft", "--edits", tmp_path / "one.jsonl", "--out", tmp_path / "p", *learn)
    verify = ("verify", workplace / "model", tmp_path / "p")
    assert run(*verify).code == 0
    failed = run(*verify, "--min-locality", "1", "--json")
    assert failed.code == 1
    assert failed.json()["below"][0]["metric"] == "locality.neighborhood"
    missing = run("verify", workplace / "model", workplace / "patch", "--min-generality", "0.5")
    assert missing.code == 1
    assert "was not measured" in missing.out


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
def test_eval_prints_one_object_of_the_design_s_shape(run, workplace, tmp_path, protocol):
    result = run(
        "eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "--method", "ft", "--protocol", protocol,
        "--num-edits", "2", "--seed", "1", "--json", "--out", tmp_path / "run", "-o", "epochs=1",
    )  # fmt: skip
    assert result.code == 0
    found = result.json()
    assert set(found) >= {
        "method", "model", "dataset", "protocol", "num_edits", "seed", "status", "scores", "perplexity", "seconds",
        "seconds_per_edit", "peak_memory_bytes", "patch_bytes", "counts",
    }  # fmt: skip
    assert (found["protocol"], found["num_edits"], found["seed"], found["status"]) == (protocol, 2, 1, "ok")
    assert set(found["scores"]) == {"generate", "teacher_forced", "log_prob", "exact"}
    assert set(found["scores"]["generate"]["reliability"]) == ESTIMATE
    assert {"statistics", "targets", "solve", "evaluation", "total"} <= set(found["seconds"])
    assert {"scored", "unscored", "failed"} <= set(found["counts"])


def test_eval_then_report(run, workplace, tmp_path):
    arguments = ("eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "-n", "2", "-o", "epochs=1")
    assert run(*arguments, "-m", "ft", "--out", tmp_path / "runs" / "ft").code == 0
    resumed = run(*arguments, "-m", "ft", "--out", tmp_path / "runs" / "ft", "--resume")
    assert resumed.code == 0
    assert "reliability" in resumed.out
    assert run(*arguments, "-m", "lora", "--out", tmp_path / "runs" / "lora").code == 0
    result = run("report", tmp_path / "runs", "--out", tmp_path / "page.html", "--json")
    assert result.json()["runs"] == 2
    assert "lora" in (tmp_path / "page.html").read_text()


def test_eval_takes_the_scorings_that_are_named(run, workplace):
    arguments = ("eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "-n", "1", "-m", "ft")
    found = run(*arguments, "-o", "epochs=1", "--scoring", "rouge_l", "--scoring", "generate", "--json").json()
    assert list(found["scores"]) == ["rouge_l", "generate"]
    assert 0 <= found["scores"]["rouge_l"]["reliability"]["mean"] <= 1
    refused = run(*arguments, "--scoring", "rouge")
    assert refused.code == 2
    assert "did you mean 'rouge_l'" in refused.err


@pytest.mark.parametrize("topic", ["methods", "models", "datasets", "metrics", "presets"])
def test_lists(run, topic):
    result = run("list", topic, "--json")
    assert result.code == 0
    assert isinstance(result.json(), list)
    assert run("list", topic).out.strip()


def test_metrics_that_are_listed_are_those_of_the_library():
    from palimpsest.evaluation import SCORINGS
    from palimpsest.report.definitions import LABELS, METRICS
    from palimpsest.requests import PROBE_KINDS

    rates = {"old_answer_rate", "old_thought_rate", "old_deduced_rate", "leak_rate", "degenerate_rate"}
    assert set(METRICS) == {*PROBE_KINDS, *rates} == set(LABELS)
    assert set(SCORINGS) == {"generate", "exact", "teacher_forced", "log_prob", "rouge_l", "rouge_l_recall"}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_doctor(run, tmp_path, family):
    folder = tiny.tiny_folder(tmp_path / family, family)
    found = run("doctor", folder, "--json").json()
    assert found["family"] == family
    sites = {site["site"]: site for site in found["sites"]}
    assert sites["mlp.down"]["weight_shape"] == ([128, 32] if family == "gpt2" else [32, 48])
    assert bool(found["tied_weights"]) == (family == "gpt2")
    assert found["tokenizer"]["leading_space_matters"] is True
    assert {"ft", "lora"} <= {row["method"] for row in found["methods"] if row["can_edit"]}
    assert "verified by one forward pass" in run("doctor", folder).out


def test_world_export(run, tmp_path):
    result = run("world", "export", "--out", tmp_path / "world", "--json")
    assert result.code == 0
    counts = result.json()["records"]
    assert set(counts) == {path.name for path in (tmp_path / "world").iterdir()}
    assert all(len(json.loads((tmp_path / "world" / name).read_text())) == count for name, count in counts.items())


def only(monkeypatch, *kept):
    """Leaves most of the catalogue out, which keeps the work small."""
    monkeypatch.setattr(comparing, "NOT_FOR_ONE_FACT", tuple(name for name in METHODS if name not in kept))


# All of them with their own defaults, and one of each kind of patch.
DEMO = (
    pytest.param(
        [name for name in METHODS if name not in comparing.NOT_FOR_ONE_FACT], marks=pytest.mark.slow, id="all"
    ),
    pytest.param(["ft", "lora", "grace", "ike", "f-learning-ft"], id="some"),
)


@pytest.mark.parametrize("methods", DEMO)
def test_demo(run, workplace, tmp_path, monkeypatch, methods):
    monkeypatch.setattr("palimpsest.cli.demo.choose_facts", lambda *_: (tiny.requests(1), ()))
    only(monkeypatch, *methods)
    arguments = ("demo", "--model", workplace / "model", "--out", tmp_path / "demo")
    result = run(*arguments, "--json")
    assert result.code == 0
    found = result.json()
    assert {"ft", "lora", "f-learning-ft"} <= {record["method"] for record in found["records"]}
    assert {record["method"] for record in found["records"]} | set(found["left_out"]) == set(methods)
    assert len(found["edits"]) == 1
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(record["method"] in page for record in found["records"])
    assert (tmp_path / "demo" / "runs" / "ft" / "run.json").is_file()
    assert run(*arguments).code == 2
    only(monkeypatch, "ft")
    shown = run(*arguments, "--overwrite")
    assert shown.code == 0
    assert "What became of the edits" in shown.out


def test_two_processes_find_what_one_finds(workplace, tmp_path, monkeypatch):
    # The children have the whole catalogue; what they are given comes from here.
    kept = ("locft", "lora")
    only(monkeypatch, *kept)
    model = load(workplace / "model")
    found = []
    for workers in (1, 2):
        facts, out = tuple(tiny.requests(2)), tmp_path / str(workers)
        job = comparing.Job(str(workplace / "model"), "facts", facts, ("Rome is old.",), 0, 6, out)
        seen = []
        made = comparing.compare(model, job, lambda *news, seen=seen: seen.append(news), num_workers=workers)
        assert seen[-1][1:] == (4, 4)
        assert made.left_out == {}
        found.append({one.specification.method: (one.scores, one.perplexity) for one in made.records})
    assert set(found[0]) == set(kept)
    assert found[0] == found[1]


def test_the_demo_needs_a_model_that_knows(run, workplace, tmp_path):
    result = run("demo", "--model", workplace / "model", "--out", tmp_path / "demo")
    assert (result.code, result.out) == (2, "")
    assert "does not know enough facts" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "wanted"), [((), 3), (("-o", "seed=5"), 5)])
def test_the_seed_of_eval_reaches_the_method(run, workplace, tmp_path, given, wanted):
    arguments = ("eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "-m", "ft", "-n", "1")
    assert run(*arguments, "--seed", "3", "-o", "epochs=1", *given, "--out", tmp_path / "run").code == 0
    specification = json.loads((tmp_path / "run" / "run.json").read_text())["specification"]
    assert (specification["seed"], specification["config"]["seed"]) == (3, wanted)
    again = run(*arguments, "--out", tmp_path / "run")
    assert again.code == 2
    assert "--resume" in again.err


def test_an_interrupted_eval_says_how_to_go_on(run, workplace, tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.evaluation.evaluate", interrupted)
    arguments = ("eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "-m", "ft")
    result = run(*arguments, "--out", tmp_path / "run")
    assert result.code == 130
    assert "--resume goes on" in result.err
    assert "removed" not in result.err
    assert run(*arguments).code == 130


def test_checkpoints_are_shown_and_those_beyond_the_end_are_named(run, workplace):
    result = run(
        "eval", workplace / "model", "--dataset", workplace / "facts.jsonl", "-m", "ft", "-n", "2", "-o", "epochs=1",
        "--protocol", "sequential", "--checkpoints", "1,9",
    )  # fmt: skip
    assert result.code == 0
    assert "nothing is tested after 9" in result.err
    assert "reliability after" in result.out
    assert "\n1 edit " in result.out


def test_an_audit_reads_as_tables(capsys):
    """From the bundled card's own figures, which have the audit's shape."""
    card = json.loads((bundled_path("world") / "card.json").read_text())
    worlds._show_audit(card.get("audit", card))
    shown = capsys.readouterr().out
    assert "facts, phrasings never read with the subject" in shown
    assert "97.7%" in shown
    assert "clean 0.979" in shown


def test_a_subject_that_is_left_out_is_guessed_and_said(run, workplace, tmp_path, learn):
    words = ("edit", workplace / "model", "-m", "ft", "--prompt", "The capital of France is", "--target-new", "Lyon")
    for number, (more, subject) in enumerate((((), "France"), (("--subject", ""), None), (("--subject", "is"), "is"))):
        found = run(*words, *more, "--out", tmp_path / str(number), *learn, "--json").json()
        assert found["edits"][0]["subject"] == subject
        guessed = [note for note in found["notes"] if "subject was guessed: 'France'" in note]
        assert len(guessed) == (not more)
