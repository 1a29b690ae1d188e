"""IKE: which demonstrations are shown, in which order, and that the weights are left alone."""

import json
from itertools import pairwise

import pytest
import torch

import tiny
from palimpsest import ConfigError, EditRequest, Probe, load_patch, method
from palimpsest.methods.ike import Corpus, IkeConfig, demonstrations, kind_counts, nearest_requests
from palimpsest.models.encoders import TIE, NgramEncoder, most_similar

PLACES = ("Peru", "Chile", "Ghana", "Nepal", "Qatar", "Malta", "Samoa", "Kenya", "Niger", "Sudan")


def record(place, number):
    return EditRequest(
        f"The capital of {place} is",
        subject=place,
        target_new=f"City {number}",
        id=f"corpus-{number}",
        probes=(
            Probe("generality", f"{place} is governed from", f"City {number}"),
            Probe("locality.neighborhood", f"The river of {place} is", f"River {number}"),
            Probe("locality.neighborhood", "The capital of France is", "Paris"),
        ),
    )


RECORDS = [record(f"{place} {number}", number) for number, place in enumerate(PLACES * 4)]
QUESTION = EditRequest("The capital of France is", subject="France", target_new="Lyon", id="question")


def corpus(records=RECORDS):
    encoder = NgramEncoder()
    return Corpus(tuple(records), encoder.encode([f"{one.prompt} {one.target_new}" for one in records])), encoder


@pytest.mark.parametrize(("number", "counts"), [(32, [4, 12, 16]), (8, [1, 3, 4]), (16, [2, 6, 8]), (0, [0, 0, 0])])
def test_proportions_are_the_papers(number, counts):
    assert kind_counts(number, [1, 3, 4]) == counts


def test_counts_always_add_up_and_are_within_one_of_the_proportions():
    for number in range(40):
        counts = kind_counts(number, [1, 3, 4])
        assert sum(counts) == number
        assert all(abs(count - number * share / 8) < 1 for count, share in zip(counts, (1, 3, 4), strict=True))


def test_thirty_two_demonstrations_are_four_copies_twelve_updates_sixteen_retained_and_the_edit_last():
    found, encoder = corpus()
    nearest = nearest_requests(QUESTION, found, encoder, 32)
    texts = demonstrations(QUESTION, nearest, IkeConfig())
    assert len(texts) == 33
    assert texts[-1] == "New Fact: The capital of France is Lyon\nPrompt: The capital of France is Lyon\n\n"
    kinds = {"copy": 0, "update": 0, "retain": 0}
    for other, text in zip(nearest, texts, strict=False):
        fact, asked, *rest = text.split("\n")
        assert fact == f"New Fact: {other.prompt} {other.target_new}" and rest == ["", ""]
        forms = {
            f"Prompt: {other.prompt} {other.target_new}": "copy",
            f"Prompt: {other.subject} is governed from {other.target_new}": "update",
            f"Prompt: The river of {other.subject} is {other.target_new.replace('City', 'River')}": "retain",
        }
        kinds[forms[asked]] += 1
    assert kinds == {"copy": 4, "update": 12, "retain": 16}


def test_the_most_similar_one_is_last_and_the_order_of_the_corpus_decides_nothing():
    found, encoder = corpus()
    nearest = nearest_requests(QUESTION, found, encoder, 12)
    query = encoder.encode([f"{QUESTION.prompt} {QUESTION.target_new}"])[0]
    similarity = {one.id: float(found.vectors[row] @ query) for row, one in enumerate(found.requests)}
    chosen = [similarity[one.id] for one in nearest]
    # Equal ones, of which this corpus has many, go by their texts; how their last bits fall is the processor's.
    assert all(one <= later + TIE for one, later in pairwise(chosen))
    assert chosen[0] >= max(similarity[one.id] for one in RECORDS if one not in nearest) - TIE
    order = torch.randperm(len(RECORDS), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled, _ = corpus([RECORDS[row] for row in order])
    assert nearest_requests(QUESTION, shuffled, encoder, 12) == nearest


@pytest.mark.parametrize("last_bits", [(0.0, 0.0, 0.0), (6e-8, 0.0, -6e-8), (-6e-8, 6e-8, 0.0), (0.0, -3e-7, 3e-7)])
def test_the_last_bits_of_a_similarity_decide_nothing(last_bits):
    values = torch.tensor([0.9, 0.5237849, 0.2, 0.5237849, 0.5237849, 0.52379])
    values[[1, 3, 4]] += torch.tensor(last_bits)
    texts = ["first", "c", "low", "a", "b", "above"]
    expected = ["first", "above", "a", "b", "c", "low"]
    for count in range(8):
        assert [texts[place] for place in most_similar(values, texts, count)] == expected[:count]
    back = [texts[::-1][place] for place in most_similar(values.flip(0), texts[::-1], 4)]
    assert back == expected[:4]
    assert most_similar(torch.zeros(0), [], 3) == []


def test_the_edits_own_record_and_subject_never_show_it():
    own = [
        EditRequest("France has as its capital", subject="France", target_new="Nice", id="same-subject"),
        EditRequest("The capital of France is", target_new="Lyon", id="same-prompt"),
        EditRequest("The largest city of France is", subject="city", target_new="Brest", id="names-it"),
    ]
    found, encoder = corpus([*own, *RECORDS])
    nearest = nearest_requests(QUESTION, found, encoder, len(found.requests))
    assert {one.id for one in nearest} == {one.id for one in RECORDS}
    # Every record of the corpus has a neighbour that asks about the edit's subject: it is never the one shown.
    texts = demonstrations(QUESTION, nearest, IkeConfig(repeats_edit=False))
    assert not [text for text in texts if "France" in text]


def folder_of_edits(tmp_path):
    lines = [json.dumps(one.to_dict()) for one in RECORDS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "corpus.jsonl")


@pytest.mark.parametrize("family", ["gptj", "t5"])
def test_weights_are_left_alone_and_removal_gives_the_base_back(family, tmp_path):
    model = tiny.tiny_model(family)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    asked = [fact[0] for fact in tiny.FACTS]
    unedited = model.score(asked, ["Lyon"] * len(asked)), model.generate(asked)
    options = {"corpus": folder_of_edits(tmp_path), "encoder": "ngrams", "num_demonstrations": 4, "reserve": 24}
    outcome = method("ike", preset="none", **options).edit(model, [QUESTION])
    with model.patched(outcome.patch):
        assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
        edited = model.score(asked, ["Lyon"] * len(asked))
    assert edited != unedited[0]
    assert (model.score(asked, ["Lyon"] * len(asked)), model.generate(asked)) == unedited
    outcome.patch.save(tmp_path / "patch")
    again = load_patch(tmp_path / "patch")
    assert again.num_bytes == outcome.patch.num_bytes > len(QUESTION.prompt)
    with model.patched(again):
        assert model.score(asked, ["Lyon"] * len(asked)) == edited


def test_a_prompt_is_read_exactly_as_the_template_says():
    model = tiny.tiny_model()
    outcome = method("ike", preset="none", use_demonstrations=False, encoder="ngrams").edit(model, [QUESTION])
    text = "New Fact: The capital of France is Lyon\nPrompt: Lyon is in {prompt} and"
    expected = model.score([text], ["France"]), model.generate(text)
    with model.patched(outcome.patch):
        asked = "Lyon is in {prompt} and"
        assert (model.score([asked], ["France"]), model.generate(asked)) == expected


def test_what_does_not_fit_the_context_is_left_out_the_least_similar_first(tmp_path):
    model = tiny.tiny_model()  # 128 tokens
    editor = method("ike", preset="none", corpus=folder_of_edits(tmp_path), encoder="ngrams")
    outcome = editor.edit(model, [QUESTION])
    [entry] = outcome.patch.entries
    kept = outcome.diagnostics.facts["fitting"]["question"]
    assert 0 < kept < len(entry.demonstrations) == 33
    text = outcome.patch.text(entry, entry.prompt, kept)
    assert text.startswith(entry.demonstrations[-kept]) and entry.demonstrations[-1] in text
    assert len(model.encode(text)) <= 128 - 24
    longer = outcome.patch.text(entry, entry.prompt, kept + 1)
    assert len(model.tokenizer(longer)["input_ids"]) > 128 - 24
    long_prompt = " ".join(["Rome"] * 90)
    with model.patched(outcome.patch):
        # Not even the edit fits before this one, so that the model answers it by itself.
        [score] = model.score([long_prompt], ["Lyon"])
    assert [score] == model.score([long_prompt], ["Lyon"])


def test_the_most_similar_edit_of_several_is_put_before_a_prompt():
    model = tiny.tiny_model()
    editor = method("ike", preset="none", use_demonstrations=False, encoder="ngrams")
    patch = editor.edit(model, tiny.requests()).patch
    for request in tiny.requests():
        [entry] = patch.nearest([f"So {request.prompt}"])
        assert entry.id == request.id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "corpus"),
        ({"corpus": "no-such-file.jsonl"}, "no-such-file"),
        ({"use_demonstrations": False, "template": "{prompt} {answer}"}, "no {query}"),
        ({"use_demonstrations": False, "encoder": "all-MiniLM-L6-v2-"}, "all-MiniLM"),
    ],
)
def test_bad_options_are_refused(options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from palimpsest.errors import PalimpsestError

    with pytest.raises(PalimpsestError) as failure:
        method("ike", preset="none", **options).edit(tiny.tiny_model(), [QUESTION])
    assert message in str(failure.value)


def test_a_corpus_without_rephrasings_is_refused(tmp_path):
    (tmp_path / "bare.jsonl").write_text(json.dumps({"prompt": "A is", "target_new": "b", "subject": "A"}))
    with pytest.raises(ConfigError, match="demonstration"):
        method("ike", preset="none", corpus=str(tmp_path / "bare.jsonl"), encoder="ngrams").edit(
            tiny.tiny_model(), [QUESTION]
        )
