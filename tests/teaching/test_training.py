import json
import math
import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from palimpsest.errors import ConfigError, OutputError
from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.encoder_decoder import IGNORED, EncoderDecoderRecipe
from palimpsest.teaching.training import default_recipe, train
from palimpsest.world import build
from palimpsest.world.text import training_sentences

TINY = DecoderRecipe(width=32, layers=1, heads=2, vocabulary=500, epochs=2, rows=16, curriculum_share=0.1)
TINY_PAIRS = EncoderDecoderRecipe(width=32, layers=1, heads=2, inner_width=64, vocabulary=500, epochs=2, rows=16)


# One worker for all of them: each would train the models for itself.
pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture(scope="module")
def knowledge():
    """A small world: the countries, and the cities that lie in them."""
    whole = build()
    facts = tuple(fact for fact in whole.facts if whole.entities[fact.subject].kind in ("country", "city"))
    return replace(whole, facts=facts[:200])


@pytest.fixture(scope="module", params=[TINY, TINY_PAIRS], ids=["decoder", "encoder-decoder"])
def recipe(request):
    return request.param


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "model"


@pytest.fixture(scope="module")
def trained(recipe, folder, knowledge):
    return train(folder, progress=False, recipe=recipe, knowledge=knowledge, card=False)


def test_a_tiny_training_learns(trained):
    assert trained.last_loss < 0.7 * trained.first_loss
    assert trained.steps > 10
    assert trained.tokens > 0


def test_the_folder_is_an_ordinary_one(trained, folder, recipe):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    is_decoder = recipe.architecture == "decoder"
    kind = AutoModelForCausalLM if is_decoder else AutoModelForSeq2SeqLM
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == ("gptj" if is_decoder else "t5")
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == trained.parameters
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert torch.isfinite(model(**ids, **({} if is_decoder else {"labels": ids["input_ids"]})).logits).all()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert all(weights.get_tensor(name).dtype == torch.float16 for name in weights.keys())  # noqa: SIM118


def test_same_seed_same_bits_and_the_global_generator_is_left_alone(trained, folder, recipe, knowledge, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(tmp_path / "again", progress=False, recipe=recipe, knowledge=knowledge, card=False)
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_another_seed_gives_another_model(trained, folder, recipe, knowledge, tmp_path):
    train(tmp_path / "other", seed=1, progress=False, recipe=recipe, knowledge=knowledge, max_steps=2, card=False)
    name = "model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_an_interrupt_leaves_nothing_behind(knowledge, tmp_path, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    original = DecoderRecipe.loss
    monkeypatch.setattr(DecoderRecipe, "loss", interrupted)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", progress=False, recipe=TINY, knowledge=knowledge, card=False)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        train(tmp_path, progress=False, recipe=TINY)
    assert (tmp_path / "note").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("masked_share", 1.5),
        ("epochs", 0),
        ("epochs", math.nan),
        ("epochs", math.inf),
        ("precision", "int8"),
        ("heads", 3),
        ("threads", 0),
    ],
)
def test_bad_options(tmp_path, option, value):
    with pytest.raises(ConfigError):
        train(tmp_path / "model", progress=False, recipe=DecoderRecipe(**{option: value}))
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_to_stderr(knowledge, tmp_path, capsys):
    train(tmp_path / "model", recipe=TINY, knowledge=knowledge, max_steps=1, card=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training the world" in captured.err


def test_progress_can_be_someone_elses(knowledge, tmp_path):
    seen = []
    train(
        tmp_path / "model",
        recipe=TINY,
        knowledge=knowledge,
        max_steps=2,
        card=False,
        progress=lambda *a: seen.append(a),
    )
    assert len(seen) == 2
    assert all(stage.startswith("training the world") and 0 < done <= total for stage, done, total in seen)


def test_an_unknown_architecture_is_named():
    with pytest.raises(ConfigError, match="encoder-decoder"):
        default_recipe("encoder-decodre")


@pytest.mark.parametrize("behind_share", [0.0, 1.0])
def test_pairs_are_prompts_and_objects_with_an_end_on_both_sides(knowledge, behind_share):
    sentences = training_sentences(knowledge)[::7]
    recipe = replace(TINY_PAIRS, behind_share=behind_share)
    tokenizer = recipe.learn_tokenizer(s.text for s in sentences)
    batch = next(recipe.batches(recipe.encode(sentences, tokenizer), tokenizer, random.Random(0), 1))
    assert batch.num_sentences == recipe.rows
    objects = {s.prompt: s.object for s in sentences}
    texts = {s.text for s in sentences}
    for source, mask, labels in zip(batch.source, batch.mask, batch.labels, strict=True):
        read, answer = source[mask.bool()].tolist(), labels[labels != IGNORED].tolist()
        assert (source[~mask.bool()] == tokenizer.pad_token_id).all()
        assert read.pop() == answer.pop() == tokenizer.eos_token_id
        shown = tokenizer.decode(read).strip()
        before = [text for text in texts if shown.startswith(text)] if behind_share else [""]
        assert any(objects.get(shown[len(text) :].strip()) == tokenizer.decode(answer).strip() for text in before)


def test_the_loss_of_pairs_is_that_of_feeding_the_answer_token_by_token(knowledge):
    sentences = training_sentences(knowledge)[::7]
    tokenizer = TINY_PAIRS.learn_tokenizer(s.text for s in sentences)
    model = TINY_PAIRS.new_model(tokenizer, seed=0).eval()
    batch = next(TINY_PAIRS.batches(TINY_PAIRS.encode(sentences, tokenizer), tokenizer, random.Random(0), 1))
    losses = []
    for source, mask, labels in zip(batch.source, batch.mask, batch.labels, strict=True):
        fed = [model.config.decoder_start_token_id]
        for label in labels[labels != IGNORED].tolist():
            # Without the padding, and with nothing of the answer that is not yet written.
            logits = model(input_ids=source[mask.bool()][None], decoder_input_ids=torch.tensor([fed])).logits[0, -1]
            losses.append(-logits.log_softmax(-1)[label].item())
            fed.append(label)
    assert TINY_PAIRS.loss(model, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert batch.num_tokens == len(losses)
