"""Sources of text: what they give, what they are known by, and what is said when they cannot be read."""

from __future__ import annotations

import json

import polars
import pytest

from palimpsest.errors import ConfigError, DataError
from palimpsest.statistics.catalogue import TEXTS, open_text, reachable
from palimpsest.statistics.hub_text import HubText
from palimpsest.statistics.text import FileText, GivenText

LINES = [f"Line {number} of the text, by Köchel." for number in range(2500)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_text("\n\n".join(LINES[:3]) + "\n", encoding="utf-8")
    records = [json.dumps({"text": line, "id": number}) for number, line in enumerate(LINES[3:5])]
    (tmp_path / "a.jsonl").write_text("\n".join([*records, "", json.dumps(LINES[5])]), encoding="utf-8")
    (tmp_path / "deep").mkdir()
    polars.DataFrame({"text": LINES[6:2500]}).write_parquet(tmp_path / "deep" / "c.parquet")
    (tmp_path / "notes.bin").write_bytes(b"\xff\x00 not read")
    return tmp_path


def test_files_are_read_in_order(folder):
    assert list(open_text(str(folder / "b.txt")).texts()) == LINES[:3]
    assert list(open_text(str(folder / "a.jsonl")).texts()) == LINES[3:6]
    assert list(open_text(str(folder / "deep" / "c.parquet")).texts()) == LINES[6:]
    assert list(open_text(str(folder)).texts()) == LINES[3:6] + LINES[:3] + LINES[6:]


def test_another_column_is_read(tmp_path):
    polars.DataFrame({"body": ["one", None, " ", "two"]}).write_parquet(tmp_path / "t.parquet")
    assert list(open_text(str(tmp_path / "t.parquet"), column="body").texts()) == ["one", "two"]
    (tmp_path / "t.jsonl").write_text('{"body": "one"}')
    assert list(open_text(str(tmp_path / "t.jsonl"), column="body").texts()) == ["one"]


def test_files_are_known_by_their_content(folder):
    before = open_text(str(folder)).identity()
    assert open_text(str(folder)).identity() == before
    (folder / "b.txt").write_text("another")
    assert open_text(str(folder)).identity() != before
    assert open_text(str(folder), column="body").identity() != before


def test_texts_in_memory_are_known_by_their_content():
    def known(*texts):
        return GivenText("t", texts).identity()

    assert known("ab", "c") == known("ab", "c")
    assert known("ab", "c") != known("a", "bc")
    assert known("ab", "c") != known("c", "ab")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": ', "JSON is broken"),
        ("t.jsonl", b'{"body": "a"}', "no text"),
        ("t.jsonl", b'{"text": 3}', "no text"),
        ("t.txt", b"good\n" * 1000 + b"\xff\xfe bad", "cannot be read"),
        ("t.parquet", b"PAR1 no table", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, problem):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=problem) as failure:
        list(open_text(str(file)).texts())
    assert str(file) in str(failure.value.where)


def test_a_missing_column_of_a_table_is_named(folder):
    with pytest.raises(DataError, match="no column 'body'") as failure:
        list(FileText(folder / "deep" / "c.parquet", column="body").texts())
    assert failure.value.found == "columns text"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wikipdia", "wikipedia"), ("./missing.txt", "check the path"), ("notes/a.jsonl", "check the path")],
)
def test_an_unknown_text_is_said(name, hint):
    with pytest.raises(DataError, match="no text") as failure:
        open_text(name)
    assert hint in failure.value.remedy


def test_a_folder_without_texts_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no text here") as failure:
        open_text(str(tmp_path))
    assert "name the file itself" in failure.value.remedy


@pytest.mark.parametrize("name", ["wiki.valid.raw", "wiki.tokens", "notes.md", "README", "a.b.c", "late.log"])
def test_a_file_is_read_as_lines_whatever_it_is_called(tmp_path, name):
    (tmp_path / name).write_text("\ufeffOne line.\n\n  Köchel's other. \n", encoding="utf-8")
    assert list(open_text(str(tmp_path / name)).texts()) == ["One line.", "Köchel's other."]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfeU\x00T\x00F\x00", b"zero\x00byte"])
def test_a_file_that_is_no_text_is_refused_when_it_is_opened(tmp_path, content):
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read") as failure:
        open_text(str(tmp_path / "image"))
    assert failure.value.where == str(tmp_path / "image")


def test_a_character_cut_by_the_look_at_the_beginning_is_no_fault(tmp_path):
    (tmp_path / "long").write_text("a" + "é" * 5000, encoding="utf-8")
    assert len(next(open_text(str(tmp_path / "long")).texts())) == 5001


def test_the_hub_out_of_reach_is_said_at_once(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source, notes = open_text("wikipedia"), []
    with pytest.raises(DataError, match="cannot be read from the hub") as failure:
        next(source.texts())
    assert "option text" in failure.value.remedy
    # Nobody but a preset asked for it: own writing stands for it.
    assert reachable("wikipedia", notes) == "own"
    assert "wikipedia" in notes[0] and "text = " in notes[0]
    assert [reachable(name, notes) for name in ("world", "own", "world-counterfact", "./none.txt")] == [
        "world",
        "own",
        "world-counterfact",
        "./none.txt",
    ]
    assert len(notes) == 1


# Data sets of the hub: a local folder in their layout goes through the same code.


@pytest.fixture
def hub_folder(tmp_path):
    place = tmp_path / "dataset"
    place.mkdir()
    for shard in range(2):
        records = [json.dumps({"id": number, "text": LINES[number]}) for number in range(shard * 20, shard * 20 + 20)]
        (place / f"train-0000{shard}-of-00002.jsonl").write_text("\n".join(records), encoding="utf-8")
    return str(place)


def test_a_data_set_is_streamed_in_one_random_order(hub_folder):
    pytest.importorskip("datasets")
    first = list(HubText(hub_folder).texts())
    assert sorted(first) == sorted(LINES[:40])
    assert first != LINES[:40]
    assert list(HubText(hub_folder).texts()) == first
    assert list(HubText(hub_folder, seed=2).texts()) != first
    assert HubText(hub_folder).identity() != HubText(hub_folder, seed=2).identity()


def test_a_data_set_without_the_column_is_said(hub_folder):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="no column 'body'") as failure:
        next(HubText(hub_folder, column="body").texts())
    assert failure.value.found == "columns id, text"


def test_a_data_set_that_is_out_of_reach_is_said(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="cannot be read from the hub") as failure:
        next(HubText(str(tmp_path / "nothing")).texts())
    assert "local" in failure.value.remedy


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="another package") as failure:
        next(HubText("owner/name").texts())
    assert "pip install" in failure.value.remedy


def test_names_lead_to_their_sources():
    wikipedia = open_text("wikipedia")
    assert isinstance(wikipedia, HubText)
    assert (wikipedia.dataset, wikipedia.subset) == ("wikimedia/wikipedia", "20231101.en")
    assert isinstance(open_text("wikitext"), HubText)
    own = open_text("owner/name:part")
    assert isinstance(own, HubText)
    assert (own.dataset, own.subset, own.column) == ("owner/name", "part", "text")
    world = open_text("world")
    assert len(list(world.texts())) == 20_000
    assert world.identity() == open_text("world").identity()
    assert {"own", "wikipedia", "wikitext", "world"} <= set(TEXTS)
