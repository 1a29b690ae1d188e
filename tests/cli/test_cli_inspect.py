"""`palimpsest inspect` on edited models and on patches: what it finds, what it writes, what it refuses."""

from __future__ import annotations

import pytest
import torch

from palimpsest import EditRequest, load, load_patch, method
from palimpsest.patches.export import write_merged

EDIT = EditRequest("The capital of France is", "Lyon", subject="France")
OPTIONS = {"learning_rate": 1e-2, "epochs": 5, "layers": [1], "constraint": "none", "spare": False}


@pytest.fixture(scope="module")
def edited(workplace, tmp_path_factory):
    """A patch of one matrix, and the model with it written into the weights."""
    place = tmp_path_factory.mktemp("edited")
    model = load(workplace / "model")
    patch = method("ft-l", preset="none", **OPTIONS).edit(model, [EDIT]).patch
    patch.save(place / "patch")
    write_merged(model, [patch], place / "model")
    return place


def test_an_edited_model_is_told_from_its_base(run, workplace, edited, tmp_path):
    back = tmp_path / "back"
    result = run(
        "inspect", edited / "model", "--base", workplace / "model", "--vocabulary", "50", "--out", back, "--json"
    )
    assert result.code == 0
    found = result.json()
    [one] = found["changes"]
    patch = load_patch(edited / "patch")
    assert [one["name"]] == patch.touched() and (one["site"], one["layer"]) == ("mlp.down", 1)
    assert one["norm"] == pytest.approx(patch.norm(), rel=1e-3)
    assert len(found["subjects"]) == 10 and found["subjects"][0]["times"] >= 1
    base, other = load(workplace / "model"), load(edited / "model")
    name = one["name"]
    with other.patched(load_patch(back)):
        apart = (other.module.get_parameter(name) - base.module.get_parameter(name)).detach().abs()
    assert int((apart > 0).sum()) == found["reversal"]["entries_off"] and float(apart.max()) < 1e-6
    assert not torch.equal(other.module.get_parameter(name), base.module.get_parameter(name))


def test_a_patch_is_inspected_as_a_table(run, workplace, edited, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("France\nItaly\n")
    result = run("inspect", edited / "patch", "--base", workplace / "model", "--vocabulary", "0", "--candidates", names)
    assert result.code == 0
    for word in ("1 changed tensor", "likely about", "France", "its manifest says: The capital of France is -> Lyon"):
        assert word in result.out


def test_what_cannot_be_inspected_costs_nothing(run, workplace, edited, tmp_path):
    base = workplace / "model"
    taken = tmp_path / "taken"
    taken.mkdir()
    for words, message in (
        ((edited / "patch", "--base", base, "--out", tmp_path / "x"), "needs no way back"),
        ((edited / "model", "--base", base, "--out", taken), "already"),
        ((edited / "model", "--base", base, "--candidates", tmp_path / "none.txt"), "candidates"),
        ((edited / "model", "--base", "world"), "not two states of one model"),
        ((edited / "nothing", "--base", base), "nothing"),
    ):
        result = run("inspect", *words)
        assert result.code == 2 and message in result.err, words
    assert not (tmp_path / "x").exists() and list(taken.iterdir()) == []
