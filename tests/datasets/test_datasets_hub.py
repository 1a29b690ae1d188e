"""Data sets by hub name: the library that reads the hub is real, the hub is a local folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import datasets
from palimpsest import ConfigError, DataError, dataset
from palimpsest.datasets import load_edits
from published_records import COUNTERFACT


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose data sets are folders below `tmp_path / "hub"`."""
    load = datasets.load_dataset

    def local(path: str, name: str | None = None) -> Any:
        folder = tmp_path / "hub" / path / (name or "")
        return load(str(folder), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def publish(folder: Path, split: str, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_published_layout_by_hub_name(hub: Path) -> None:
    publish(hub / "lab" / "facts", "train", [COUNTERFACT])
    publish(hub / "lab" / "facts", "test", [{**COUNTERFACT, "case_id": 8}])
    for data in (dataset("counterfact", "hf://lab/facts", split="train"), dataset("counterfact", "hf://lab/facts")):
        (request,) = data.requests
        assert (request.prompt, request.target_old) == ("Northlight was founded in", "Bergen")
        assert [probe.prompt for probe in request.probes] == ["Northlight comes from", "Westwind was founded in"]
    assert [request.id for request in load_edits("hf://lab/facts").requests] == ["7", "8"]


def test_a_path_object_and_a_configuration(hub: Path) -> None:
    publish(hub / "lab" / "facts" / "small", "train", [COUNTERFACT])
    assert len(load_edits(Path("hf://lab/facts/small"))) == 1


def test_a_data_set_that_cannot_be_had(hub: Path) -> None:
    with pytest.raises(DataError, match="cannot be read from the hub") as caught:
        load_edits("hf://lab/none")
    assert caught.value.where == "hf://lab/none"
    with pytest.raises(DataError, match="cannot be read"):
        load_edits("hf://facts")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="another package") as caught:
        load_edits("hf://lab/facts")
    assert "palimpsest-lm[hub]" in (caught.value.remedy or "")


def test_one_file_of_a_data_set(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub / "lab" / "facts" / "part", "train", [COUNTERFACT])

    def download(name: str, file: str, *, repo_type: str) -> str:
        assert repo_type == "dataset"
        if not (hub / name / file).exists():
            raise OSError("not there")
        return str(hub / name / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_edits("hf://lab/facts/part/train.jsonl").requests[0].subject == "Northlight"
    with pytest.raises(DataError, match="cannot be read from the hub") as caught:
        load_edits("hf://lab/facts/part/other.json")
    assert caught.value.where == "hf://lab/facts/part/other.json"
