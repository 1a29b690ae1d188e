import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from palimpsest.errors import ConfigError, OutputError
from palimpsest.world import training
from palimpsest.world.knowledge import build
from palimpsest.world.training import TrainingConfig, train

TINY = TrainingConfig(width=32, layers=1, heads=2, vocabulary=500, epochs=2, rows=16, curriculum_share=0.1)


@pytest.fixture(scope="module")
def knowledge():
    """A small world: the countries, and the cities that lie in them."""
    whole = build()
    facts = tuple(fact for fact in whole.facts if whole.entities[fact.subject].kind in ("country", "city"))
    return replace(whole, facts=facts[:200])


@pytest.fixture(scope="module")
def trained(knowledge, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    return train(out, progress=False, config=TINY, knowledge=knowledge, card=False)


def test_a_tiny_training_learns(trained):
    assert trained.last_loss < 0.7 * trained.first_loss
    assert trained.steps > 10
    assert trained.tokens > 0


def test_the_folder_is_an_ordinary_one(trained):
    names = {path.name for path in trained.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    model = AutoModelForCausalLM.from_pretrained(trained.path)
    tokenizer = AutoTokenizer.from_pretrained(trained.path)
    assert model.config.model_type == "gptj"
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == trained.parameters
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert json.loads((trained.path / "config.json").read_text())["dtype"] == "float32"
    with safe_open(trained.path / "model.safetensors", framework="pt") as weights:
        assert all(weights.get_tensor(name).dtype == torch.float16 for name in weights.keys())  # noqa: SIM118


def test_same_seed_same_bits_and_the_global_generator_is_left_alone(trained, knowledge, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tmp_path / "again", progress=False, config=TINY, knowledge=knowledge, card=False)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained.path / name).read_bytes()


def test_another_seed_gives_another_model(trained, knowledge, tmp_path):
    train(tmp_path / "other", seed=1, progress=False, config=TINY, knowledge=knowledge, max_steps=2, card=False)
    name = "model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (trained.path / name).read_bytes()


def test_an_interrupt_leaves_nothing_behind(knowledge, tmp_path, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = training.weighted_loss
    monkeypatch.setattr(training, "weighted_loss", interrupted)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", progress=False, config=TINY, knowledge=knowledge, card=False)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        train(tmp_path, progress=False, config=TINY)
    assert (tmp_path / "note").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value"),
    [("masked_share", 1.5), ("epochs", 0), ("precision", "int8"), ("heads", 3), ("threads", 0)],
)
def test_bad_options(tmp_path, option, value):
    with pytest.raises(ConfigError):
        train(tmp_path / "model", progress=False, config=TrainingConfig(**{option: value}))
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_to_stderr(knowledge, tmp_path, capsys):
    train(tmp_path / "model", config=TINY, knowledge=knowledge, max_steps=1, card=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training the world" in captured.err


def test_progress_can_be_someone_elses(knowledge, tmp_path):
    seen = []
    train(
        tmp_path / "model",
        config=TINY,
        knowledge=knowledge,
        max_steps=2,
        card=False,
        progress=lambda *a: seen.append(a),
    )
    assert len(seen) == 2
    assert all(stage.startswith("training the world") and 0 < done <= total for stage, done, total in seen)
