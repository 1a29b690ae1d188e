"""Building portability questions: what is proposed, dropped, kept, reviewed, and what a killed build goes on with."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from chat_server import ChatServer, from_triples, says, sends, serving
from palimpsest import ConfigError, DataError, EditRequest, OutputError, Probe, dataset, world
from palimpsest.cli import main
from palimpsest.datasets import load_edits
from palimpsest.datasets.base import Record
from palimpsest.datasets.portability import LocalModel, NoProposal, Proposal, Summary, TableGenerator, build
from palimpsest.datasets.portability.asking import Message
from palimpsest.datasets.portability.items import objection

EDITS = tuple(
    EditRequest(f"The country of {name} is", new, subject=name, target_old="Sweden", id=name)
    for name, new in (("Ann", "Norway"), ("Bo", "Peru"), ("Cy", "Chad"))
)


class Knowing:
    """A model that says what it is told to, and counts what it is asked."""

    name = "knowing"
    weights = SimpleNamespace(labels=())

    def __init__(self, **facts: str) -> None:
        self.facts = facts
        self.asked: list[str] = []

    def fingerprint(self) -> dict[str, str]:
        return {"facts": str(self.facts)}

    def encode(self, prompt: str) -> list[int]:
        return list(range(len(prompt)))

    def room_after(self, length: int) -> int:
        return 200 - length

    def generate(self, prompts: list[str], *, max_new_tokens: int) -> list[str]:
        self.asked += prompts
        return [self.facts.get(prompt.rstrip(), "dunno.") for prompt in prompts]


class Listed:
    """A generator with a list of proposals for each edit; an error or a reason in their place is raised."""

    identity = {"listed": 1}

    def __init__(self, **by_edit: Any) -> None:
        self.by_edit = by_edit
        self.asked: list[str] = []

    def propose(self, edit: EditRequest, num_items: int) -> list[Proposal]:
        self.asked.append(edit.id)
        found = self.by_edit.get(edit.id, "nothing known")
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, str):
            raise NoProposal(found)
        return list(found[:num_items])


def capital(name: str, country: str, answer: str, **more: Any) -> Proposal:
    fields = {
        "relation": "capital",
        "answer": answer,
        "recall": f"The capital of {country} is",
        "question": f"The capital of the country of {name} is",
    }
    return Proposal(**{**fields, **more})


MODEL = {"The capital of Norway is": "Oslo. It", "The capital of Peru is": "the city of lime"}
OSLO = capital("Ann", "Norway", "Oslo")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "review.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def decide(folder: Path, *decisions: str) -> None:
    found = rows(folder)
    for row, decision in zip(found, decisions, strict=True):
        row["accepted"] = decision
    with (folder / "review.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(found[0]))
        table.writeheader()
        table.writerows(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"answer": " "}, "answer is blank"),
        ({"question": "Ann " * 90}, "question is too long"),
        ({"answer": "norway", "aliases": ()}, "own subject or new answer"),
        ({"recall": "The capital of it is"}, "recall does not name the new answer"),
        ({"recall": "The capital of Norwayland is"}, "recall does not name the new answer"),
        ({"question": "The capital of Anna is"}, "question does not name the subject"),
        ({"question": "Ann lives in Norway, whose capital is"}, "does not need the edit"),
        ({"recall": "Oslo is the capital of Norway. It is"}, "recall gives its answer away"),
        ({"question": "Ann of Christiania lives in", "aliases": ("Christiania",)}, "question gives its answer away"),
    ],
)
def test_proposals_that_cannot_test_the_edit_are_refused(change: dict[str, Any], words: str | None) -> None:
    found = objection(EDITS[0], capital("Ann", "Norway", **{"answer": "Oslo", **change}))
    assert (found is None) if words is None else (words in (found or ""))


def test_only_what_the_model_knows_and_does_not_say_already_is_kept(tmp_path: Path) -> None:
    also = capital(
        "Ann", "Norway", "Bergen", relation="second city", question="The second city of the country of Ann is"
    )
    said = Proposal("king", "Ed", "The king of Norway is", "The king of the country of Ann is")
    long = capital("Cy", "Chad", "N'Djamena", recall="Chad " + "x" * 180)
    model = Knowing(**MODEL, **{"The king of Norway is": "Ed.", "The king of the country of Ann is": "ed"})
    proposals = Listed(Ann=[OSLO, OSLO, also, said], Bo=[capital("Bo", "Peru", "Lima", aliases=("the city of lime",))])
    proposals.by_edit["Cy"] = [long]
    summary = build(EDITS, model, proposals, tmp_path / "out", num_items=4)  # type: ignore[arg-type]
    assert summary == Summary(
        edits=3,
        proposed=5,
        kept=2,
        dropped={
            "the model does not know the fact about the new answer": 1,
            "the model gives this answer without the edit": 1,
            "a prompt does not fit into the model's context": 1,
        },
        without_proposal={},
    )
    assert [(row["edit"], row["answer"], row["accepted"]) for row in rows(tmp_path / "out")] == [
        ("The country of Ann is", "Oslo", ""),
        ("The country of Bo is", "Lima", ""),
    ]


def test_only_accepted_questions_count_when_the_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    proposals = Listed(Ann=[OSLO], Bo=[capital("Bo", "Peru", "Lima", aliases=("the city of lime",))])
    build(EDITS, Knowing(**MODEL), proposals, folder)  # type: ignore[arg-type]
    assert load_edits(folder).requests == EDITS
    assert "accepted 0, rejected 0, not reviewed 2" in load_edits(folder).notes[0]
    decide(folder, "No", " YES")
    data = dataset("portability", folder)
    probe = Probe("portability.one_hop", "The capital of the country of Bo is", "Lima", accepts=("the city of lime",))
    assert [request.probes for request in data.requests] == [(), (probe,), ()]
    assert "accepted 1, rejected 1, not reviewed 0" in data.notes[0]
    # Building again, which only writes the pages, keeps the decisions.
    build(EDITS, Knowing(**MODEL), proposals, folder, resume=True)  # type: ignore[arg-type]
    assert [row["accepted"] for row in rows(folder)] == ["no", "yes"]
    for wrong in ("perhaps", "yes, I think"):
        decide(folder, wrong, "yes")
        with pytest.raises(DataError, match="row of the review") as caught:
            load_edits(folder)
        assert "review.csv:2" in (caught.value.where or "")


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, model = tmp_path / "out", Knowing(**MODEL)
    broken = Listed(Ann=[OSLO], Bo=DataError("The endpoint does not answer."))
    with pytest.raises(DataError, match="does not answer"):
        build(EDITS, model, broken, folder)  # type: ignore[arg-type]
    assert "2 edits have not been asked about" in load_edits(folder).notes[1]
    with (folder / "items.jsonl").open("ab") as stream:
        stream.write(b'{"edit": "Bo", "items": [{"id"')
    whole = Listed(Ann=[OSLO], Bo="refused")
    seen: list[tuple[int, int]] = []
    summary = build(
        EDITS,
        model,
        whole,
        folder,
        resume=True,
        progress=lambda _, done, total: seen.append((done, total)),  # type: ignore[arg-type]
    )
    assert whole.asked == ["Bo", "Cy"]
    assert summary.without_proposal == {"refused": 1, "nothing known": 1}
    assert (summary.kept, seen[-1]) == (1, (3, 3))
    straight = build(EDITS, Knowing(**MODEL), Listed(Ann=[OSLO], Bo="refused"), tmp_path / "other")  # type: ignore[arg-type]
    assert straight == summary
    assert (tmp_path / "other" / "items.jsonl").read_bytes() == (folder / "items.jsonl").read_bytes()


def test_a_build_is_neither_overwritten_nor_mixed_with_another(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    build(EDITS, Knowing(**MODEL), Listed(), folder)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="exists already"):
        build(EDITS, Knowing(**MODEL), Listed(), folder)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="another build") as caught:
        build(EDITS[:2], Knowing(), Listed(), folder, num_items=2, resume=True)  # type: ignore[arg-type]
    assert caught.value.found == "another model, num_items, edits"
    with pytest.raises(DataError, match="nothing to build"):
        build((), Knowing(), Listed(), tmp_path / "none")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    (folder / "build.json").write_text('{"format_version": 99}')
    with pytest.raises(OutputError, match="later version"):
        load_edits(folder)


def test_the_pages_hold_whatever_a_generator_writes(tmp_path: Path) -> None:
    evil = capital("Ann", "Norway", "=Oslo</script><b>", aliases=('a "b", c',))
    build(EDITS, Knowing(**{"The capital of Norway is": "=oslo</script><b>"}), Listed(Ann=[evil]), tmp_path / "out")  # type: ignore[arg-type]
    (row,) = rows(tmp_path / "out")
    assert (row["answer"], row["other_names"]) == ("'=Oslo</script><b>", 'a "b", c')
    page = (tmp_path / "out" / "review.html").read_text()
    assert page.count("</script>") == 1
    assert "http" not in page.replace("http-equiv", "")
    shown = page.split("const items = ")[1].split(";\n")[0]
    assert json.loads(shown)[0]["answer"] == "=Oslo</script><b>"


def test_a_table_of_triples_as_wikidata_gives_it() -> None:
    fields = [
        {
            "item": "Q1",
            "itemLabel": "Norway",
            "propertyLabel": "capital",
            "valueLabel": "Oslo",
            "aliases": "Christiania|",
        },
        {"item": "Q1", "itemLabel": "Norway", "propertyLabel": "language", "valueLabel": "Bokmal"},
        {"item": "Q1", "itemLabel": "norway", "propertyLabel": "language", "valueLabel": "Nynorsk"},
        {"itemLabel": "Norway", "propertyLabel": "king", "valueLabel": "Harald", "recall": "{}'s king is"},
    ]
    table = TableGenerator([Record(f"t.csv:{n}", one) for n, one in enumerate(fields, 2)], "t.csv")
    assert table.propose(EDITS[0], 3) == [
        capital("Ann", "Norway", "Oslo", aliases=("Christiania",)),
        Proposal(
            "language", "Bokmal", "The language of Norway is", "The language of the country of Ann is", ("Nynorsk",)
        ),
        Proposal("king", "Harald", "Norway's king is", "The king of the country of Ann is"),
    ]
    question = EditRequest("What is the country of Ann?", "Norway", subject="Ann")
    assert table.propose(question, 1)[0].question == "The capital of the country of Ann is"
    with pytest.raises(NoProposal, match="no triple"):
        table.propose(EDITS[1], 3)
    for prompt in ("Ann is a citizen of", "The town of Ann lies in", "The house of Ann is in", "Where is Ann from?"):
        with pytest.raises(NoProposal, match="as a noun"):
            table.propose(EditRequest(prompt, "Norway", subject="Ann"), 3)
    with pytest.raises(DataError, match="no `relation`") as caught:
        TableGenerator([Record("t.csv:2", {"subject": "Norway", "object": "Oslo"})], "t.csv")
    assert caught.value.where == "t.csv:2"


def test_what_followed_from_the_old_answer_makes_a_reasoning_probe(tmp_path: Path) -> None:
    rows = [
        ("Norway", "Oslo", "Christiania"),
        ("Sweden", "Stockholm", ""),
        ("Peru", "Lima", ""),
        ("Chad", "Stockholm", ""),
    ]
    fields = [{"subject": one, "relation": "capital", "object": two, "aliases": three} for one, two, three in rows]
    table = TableGenerator([Record(f"t.csv:{n}", one) for n, one in enumerate(fields, 2)], "t.csv")
    [proposed] = table.propose(EDITS[0], 3)
    assert proposed == capital("Ann", "Norway", "Oslo", aliases=("Christiania",), old=("Stockholm",))
    # What held of both answers shows nothing.
    assert [one.old for edit in EDITS[1:] for one in table.propose(edit, 1)] == [("Stockholm",), ()]

    model = Knowing(**{proposed.recall: "Oslo", proposed.question: "Stockholm"})
    build(EDITS[:1], model, table, tmp_path / "out")  # type: ignore[arg-type]
    decide(tmp_path / "out", "yes")
    [edit] = load_edits(tmp_path / "out").requests
    probe = Probe(
        "portability.reasoning", proposed.question, "Oslo", accepts=("Christiania",), expected_old="Stockholm"
    )
    assert edit.probes == (probe,)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_local_model_is_asked_in_its_own_words(family: str) -> None:
    local = LocalModel(tiny.tiny_model(family), max_new_tokens=5)
    text = local.complete([Message("user", "The capital of France is")])
    assert isinstance(text, str)
    assert local.complete([Message("user", "The capital of France is")]) == text
    if family == "llama":
        with pytest.raises(NoProposal, match="does not fit"):
            local.complete([Message("user", "France " * 3000)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    knowledge = world.build()

    def propose(statement: str, subject: str, new: str) -> list[dict[str, Any]]:
        (fact,) = [one for one in knowledge.facts_about(subject) if statement.startswith(f"{_prompt(one)} ")]
        found = []
        for two in knowledge.follow(type(fact)(fact.subject, fact.relation, new)):
            texts = knowledge.relations[two.hop.second].statements
            texts = [text.replace("{}", one) for text, one in ((texts[0], new), (two.hop.phrasings[0], subject))]
            found.append({"relation": two.hop.second, "answer": two.object, "recall": texts[0], "question": texts[1]})
        # What nobody knows: the filter has to find it out.
        return [*found, {**found[0], "answer": "Mister Nobody", "relation": "made up"}]

    def _prompt(fact: Any) -> str:
        return knowledge.relations[fact.relation].statements[0].replace("{}", fact.subject)

    with serving(from_triples(propose)) as running:
        yield running


def edits_of_the_world(file: Path) -> None:
    knowledge = world.build()
    facts = [fact for fact in knowledge.facts_in("citizen_of") if knowledge.in_split(fact.subject, "train")][:3]
    prompt = knowledge.relations["citizen_of"].statements[0]
    lines = []
    for fact in facts:
        new = "Japan" if fact.object != "Japan" else "France"
        record = {"prompt": prompt.replace("{}", fact.subject), "subject": fact.subject, "target_new": new}
        lines.append(json.dumps({**record, "target_old": fact.object}))
    file.write_text("\n".join(lines))


def test_the_command_builds_from_an_endpoint_and_its_folder_is_a_data_set(
    tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    edits_of_the_world(tmp_path / "edits.jsonl")
    command = [
        "portability", "build", str(tmp_path / "edits.jsonl"), "--model", "world", "--generator", server.url,
        "--generator-model", "triples", "--num-items", "6", "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    assert main([*command, "--dry-run", "--prices", "1", "10"]) == 0
    forecast = json.loads(capsys.readouterr().out)["estimate"]
    assert (forecast["requests"], server.requests) == (3, [])
    assert main([*command, "--prices", "1", "10", "--max-cost", "nan"]) == 2
    assert main([*command, "--prices", "1", "10", "--max-cost", "0.0001"]) == 2
    assert "would cost more" in capsys.readouterr().err
    assert server.requests == []

    server.script = [says("I would rather talk about the weather.")]
    assert main(command) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert "About to ask 3 questions" in captured.err
    # One answer had to be asked for again.
    assert len(server.requests) == 4
    assert summary["dropped"]["the model does not know the fact about the new answer"] >= 3
    assert summary["kept"] >= 3
    assert summary["proposed"] == summary["kept"] + sum(summary["dropped"].values())

    decide(tmp_path / "out", *["yes"] * summary["kept"])
    data = load_edits(tmp_path / "out")
    assert sum(len(request.probes) for request in data.requests) == summary["kept"]
    assert all(probe.kind == "portability.one_hop" for request in data.requests for probe in request.probes)

    # Everything is in the cache, also for an endpoint that is down by now.
    server.default = sends(b"", 500)
    again = [one.replace("/out", "/again") for one in command]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == summary["kept"]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--generator", "http://127.0.0.1:9/v1"], "--generator-model NAME"),
        (["--generator", "t.csv", "--generator-model", "x"], "Only an endpoint takes --generator-model"),
        (["--generator", "t.csv", "-o", "a=1"], "Only an endpoint takes --option"),
        (["--generator", "none.csv"], "no such file"),
        (["--generator", "https://h/v1", "--generator-model", "x", "--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--generator", "t.csv", "--max-cost", "1"], "without prices"),
    ],
)
def test_bad_input_costs_nothing(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("subject,relation,object\nNorway,capital,Oslo\n")
    (tmp_path / "e.csv").write_text("prompt,subject,target_new\nThe country of Ann is,Ann,Norway\n")
    code = main(["portability", "build", "e.csv", "--model", "no-such-model", *arguments, "--out", "out"])
    assert code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not that of a build"):
        dataset("portability", tmp_path)
    with pytest.raises((DataError, ConfigError)):
        dataset("portability")
