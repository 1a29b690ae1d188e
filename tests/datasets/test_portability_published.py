"""The accepted questions about one's own edits as a data set on the hub; with a hub that is made up."""

import csv
import json

import pytest
import yaml

from palimpsest import ConfigError, DataError, EditRequest, load
from palimpsest.cli import main
from palimpsest.datasets import load_edits
from palimpsest.datasets.base import Record
from palimpsest.datasets.portability import TableGenerator, build, prepare_questions
from palimpsest.patches import publish

EDITS = [
    EditRequest("The capital of France is", "Tokyo", subject="France", target_old="Paris"),
    EditRequest("The capital of Spain is", "Oslo", subject="Spain", target_old="Madrid"),
]
TRIPLES = [
    {"subject": "Tokyo", "relation": "country", "object": "Japan", "recall": "{} is a city in"},
    {"subject": "Oslo", "relation": "country", "object": "Norway", "recall": "{} is a city in"},
]


class FakeHub:
    """What `publish` uses of HfApi."""

    def __init__(self):
        self.repos, self.commits = [], []

    def whoami(self):
        pass

    def create_repo(self, repo, **options):
        self.repos.append((repo, options))
        return f"https://hub.example/{repo}"

    def create_commit(self, repo, operations, **options):
        self.commits.append((repo, {one.path_in_repo: one.path_or_fileobj for one in operations}, options))


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "questions"
    generator = TableGenerator([Record("memory", one) for one in TRIPLES], "triples")
    assert build(EDITS, load("world"), generator, found).kept == 2
    return found


def decide(folder, *decisions):
    with (folder / "review.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row, decision in zip(rows, decisions, strict=True):
        row["accepted"] = decision
    with (folder / "review.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_accepted_questions_are_published_and_read_back(folder, tmp_path):
    decide(folder, "yes", "no")
    hub = FakeHub()
    publication = prepare_questions(folder, "me/questions")
    assert publish(publication, hub, private=True) == "https://hub.example/me/questions"
    assert hub.repos == [("me/questions", {"private": True, "exist_ok": False, "repo_type": "dataset"})]
    [(_, files, options)] = hub.commits
    assert options == {"commit_message": "1 portability question about 1 edit", "repo_type": "dataset"}
    # Neither who made the questions nor what was rejected.
    assert set(files) == {"edits.jsonl", "README.md"}
    assert str(tmp_path) not in str(files) and "Norway" not in str(files)
    (tmp_path / "edits.jsonl").write_bytes(files["edits.jsonl"])
    assert load_edits(tmp_path / "edits.jsonl").requests == load_edits(folder).requests[:1]
    metadata = yaml.safe_load(publication.card.split("---")[1])
    assert metadata["configs"] == [{"config_name": "default", "data_files": "edits.jsonl"}]
    assert "| The capital of France is | Tokyo |" in publication.card


def test_the_hubs_own_library_reads_it(folder, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    decide(folder, "yes", "yes")
    file = tmp_path / "edits.jsonl"
    file.write_bytes(prepare_questions(folder, "me/questions").files["edits.jsonl"])
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["target_new"] for row in rows] == ["Tokyo", "Oslo"]
    assert [probe["expected"] for row in rows for probe in row["probes"]] == ["Japan", "Norway"]


def test_nothing_accepted_is_refused(folder):
    with pytest.raises(DataError) as raised:
        prepare_questions(folder, "me/questions")
    assert "accepted 0, rejected 0, not reviewed 2" in raised.value.found
    with pytest.raises(ConfigError, match="cannot be a hub id"):
        prepare_questions(folder, "me/questions/again")


def test_the_command_shows_it_and_refuses_what_is_for_patches(folder, capsys):
    decide(folder, "yes", "yes")
    assert main(["push", str(folder), "me/questions", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["form"] == "dataset" and set(found["files"]) == {"edits.jsonl", "README.md"}
    assert main(["push", str(folder), "me/questions", "--dry-run", "--base-model", "me/base"]) == 2
    assert "no --record and no --base-model" in capsys.readouterr().err
