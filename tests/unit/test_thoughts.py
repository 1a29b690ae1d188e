"""Where a text's answer begins when a thought stands before it: texts only."""

import pickle
from types import SimpleNamespace

import pytest

from palimpsest import DataError, EditRequest, Probe
from palimpsest.answers import gives, states
from palimpsest.evaluation import Observation, find_scoring, verdict_on, verified
from palimpsest.evaluation.scoring import UNFINISHED, degenerate, leak, old_thought
from palimpsest.models.growing import GrowingText
from palimpsest.wording import Reply, is_unfinished, left_open, parted, thought_of

REQUEST = EditRequest("What is the capital of France?", "Lyon", target_old="Paris")
# All that is read of a model where no text repeats itself.
MODEL = SimpleNamespace(chat=object(), tokenizer=lambda texts, **_: {"input_ids": [[0]] * len(texts)})
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nIt was Paris.\n</think>\n\nLyon.", "It was Paris.", "Lyon."),
        ("\n<think>\n\n</think>\n\nLyon", "", "Lyon"),
        ("<think>It says </think> twice </think> Lyon", "It says", "twice </think> Lyon"),
        ("Hm. Paris?\n</think>\n\nLyon", "Hm. Paris?", "Lyon"),
        (f"{ANALYSIS}It was Paris.<|end|><|start|>assistant{FINAL}Lyon<|return|>", "It was Paris.", "Lyon"),
        (f"{FINAL}Lyon", "", "Lyon"),
        (
            f"{ANALYSIS}One.<|end|><|start|>assistant<|channel|>commentary<|message|>Two.<|end|>"
            f"<|start|>assistant{FINAL}Lyon",
            "One.\nTwo.",
            "Lyon",
        ),
        ("[THINK]Paris?[/THINK]Lyon", "Paris?", "Lyon"),
        ("<seed:think>Paris?</seed:think>Lyon", "Paris?", "Lyon"),
    ],
)
def test_the_answer_follows_the_thought(text, thought, answer):
    found = parted(text)
    assert (str(found), found.thought, found.is_unfinished) == (answer, thought, False)


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>\nThe capital is Lyon", "The capital is Lyon"),
        ("<think>", ""),
        (f"{ANALYSIS}The capital is Lyon.<|end|>", "The capital is Lyon."),
        (f"{ANALYSIS}Lyon.<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>Lyon", "Lyon.\nLyon"),
        ("[THINK]Lyon", "Lyon"),
    ],
)
def test_a_thought_without_an_end_is_no_answer(text, thought):
    found = parted(text)
    assert found == "" and found.thought == thought and is_unfinished(found)
    assert not gives(found, ["Lyon"], is_reply=True) and not gives(found, ["Lyon"])
    assert verdict_on(REQUEST, "Paris", found, is_chat=True) == "still thinking"


def test_a_thought_that_the_template_opens_has_no_opening_mark():
    prompt = "<|im_start|>assistant\n<think>\n"
    form = left_open(prompt)
    found = parted("It was Paris.\n</think>\n\nLyon", form)
    assert (str(found), found.thought) == ("Lyon", "It was Paris.")
    assert is_unfinished(parted("It is Lyon", form))
    # Some models write the mark again.
    assert parted("<think>\nParis?</think>Lyon", form).thought == "Paris?"
    assert left_open("<|im_start|>assistant\n<think>\n\n</think>\n\n") is None


@pytest.mark.parametrize("text", ["Lyon.", "", "I think <think> is a tag.", "<b>Lyon</b>"])
def test_texts_without_a_thought_are_left_alone(text):
    assert parted(text) is text and thought_of(text) is None and not is_unfinished(text)


def test_a_reply_keeps_its_thought_when_it_is_stripped_and_copied():
    reply = Reply(" Lyon ", "Hm.", written="<think>Hm.</think>")
    for one in (reply.strip(), pickle.loads(pickle.dumps(reply)).strip()):
        assert (one, one.thought, one.is_unfinished, one.written) == ("Lyon", "Hm.", False, "<think>Hm.</think>")


@pytest.mark.parametrize(
    ("thought", "named"),
    [
        ("It was Paris, but now it is Lyon.", 1.0),
        ("It is Lyon.", 0.0),
        ("The Parisian region.", 0.0),
        ("", 0.0),
        (None, None),
    ],
)
def test_the_old_answer_in_the_thought_is_measured_apart_from_the_answer(thought, named):
    probe = REQUEST.all_probes()[0]
    said = Observation("Lyon" if thought is None else Reply("Lyon", thought), is_chat=True)
    scoring = find_scoring("generate")
    assert old_thought(REQUEST, probe, said) == named
    assert scoring.score(REQUEST, probe, Observation("Paris"), said).value == 1.0
    assert scoring.old_answer(REQUEST, probe, said) == 0.0
    [found] = verified(MODEL, [REQUEST], ["Paris"], [said.generated])
    assert (found.verdict, found.thought) == ("holds", thought)
    assert found.names_old is (None if named is None else bool(named))
    assert ("thought" in found.to_dict()) is (thought is not None)


def test_what_the_prompt_says_does_not_count_as_named():
    request = EditRequest("Is Paris still the capital of France, or which city is?", "Lyon", target_old="Paris")
    probe = request.all_probes()[0]
    for thought, named in (("Paris? No.", 0.0), ("Paris? No. Or Paris after all.", 1.0)):
        assert old_thought(request, probe, Observation(Reply("Lyon", thought))) == named
    assert states("New York City", ["New York"], against=["New York City"]) is False


def test_nothing_is_judged_where_a_thought_has_no_end():
    own, near = REQUEST.all_probes()[0], Probe("locality.neighborhood", "What is the capital of Italy?", "Rome")
    lost, said = Observation(Reply("", "Paris or Lyon", is_unfinished=True), is_chat=True), Observation("Rome")
    for name in ("generate", "exact", "rouge_l"):
        scoring = find_scoring(name)
        assert scoring.score(REQUEST, own, said, lost).reason == UNFINISHED
        assert scoring.old_answer(REQUEST, own, lost) is None
        assert scoring.score(REQUEST, near, lost, said).value is None
        assert "unedited" in scoring.score(REQUEST, near, lost, said).reason
        assert scoring.ceiling(REQUEST, own, lost) is None
        # The unedited model's own thought is not needed where nothing is compared with it.
        assert scoring.score(REQUEST, own, lost, Observation("Lyon", is_chat=True)).value == 1.0
    assert degenerate(own, said, lost) is None and degenerate(own, lost, said) is None
    assert leak(REQUEST, near, said, lost) is None
    assert old_thought(REQUEST, own, lost) == 1.0


REASONING = Probe(
    "portability.reasoning", "Which river flows through the capital of France?", "the Saône",
    expected_old="the Seine", accepts_old=("Seine",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "value", "old"),
    [
        ("The Saône does.", 1.0, 0.0),
        ("It is the Seine.", 0.0, 1.0),
        ("The Rhine.", 0.0, 0.0),
        ("Seine, Saône", 0.0, 0.0),
    ],
)
def test_a_reasoning_probe_asks_whether_the_old_fact_is_still_deduced(said, value, old):
    probe = Probe(**{**REASONING.to_dict(), "accepts": ("Saône",)})
    scoring = find_scoring("generate")
    assert scoring.score(REQUEST, probe, Observation(), Observation(said)).value == value
    assert scoring.old_answer(REQUEST, probe, Observation(said)) == old
    assert list(find_scoring("log_prob").targets(REQUEST, probe, None)) == ["the Saône", "the Seine"]
    assert EditRequest.from_dict(EditRequest("a b", "c", probes=(probe,)).to_dict()).probes == (probe,)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "portability.reasoning", "expected": "a"},
        {"kind": "portability.reasoning", "expected": "a", "expected_old": " A "},
        {"kind": "portability.one_hop", "expected": "b", "accepts": ("a",), "expected_old": "a"},
        {"kind": "generality", "expected": "a", "expected_old": "b"},
        {"kind": "locality.neighborhood", "expected_old": "b"},
    ],
)
def test_old_answers_that_cannot_be_used(fields):
    with pytest.raises(DataError, match="old answer cannot be used"):
        Probe(prompt="Who?", **fields)


# Token by token


class Letters:
    """A tokenizer whose tokens are characters, but for a few special ones."""

    special = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")

    def ids(self, text):
        found = []
        while text:
            mark = next((one for one in self.special if text.startswith(one)), text[0])
            found.append(1000 + self.special.index(mark) if mark in self.special else ord(mark))
            text = text.removeprefix(mark)
        return found

    def decode(self, ids, skip_special_tokens):
        texts = [self.special[one - 1000] if one >= 1000 else chr(one) for one in ids]
        return "".join(one for one in texts if not (skip_special_tokens and one in self.special))


def grown(text, *, thought_tokens=99, answer_tokens=9, opened=None, end="<|return|>", turn_end="<|end|>"):
    tokenizer = Letters()
    ends = tokenizer.ids(end)
    row = GrowingText(
        tokenizer,
        lambda answer: answer[: answer.index("!")] if "!" in answer else None,
        answer_tokens=answer_tokens,
        thought_tokens=thought_tokens,
        opened=opened,
        ends=ends,
        turn_end=tokenizer.ids(turn_end)[0],
    )
    ids = tokenizer.ids(text)
    taken = next((place + 1 for place, one in enumerate(ids) if not row.add(one)), len(ids))
    return SimpleNamespace(text=row.text, taken=taken, thought=thought_of(row.text), lost=is_unfinished(row.text))


def test_the_rule_that_ends_an_answer_reads_no_thought():
    found = grown("<think>No! Paris!</think>\nLyon! And")
    assert (found.text.strip(), found.thought, found.lost) == ("Lyon", "No! Paris!", False)
    assert found.text.written == "<think>No! Paris!</think>\n"


def test_harmony_s_messages_end_inside_a_thought_and_behind_the_answer():
    text = f"{ANALYSIS}Paris?<|end|><|start|>assistant{FINAL}Lyon"
    for end in ("<|end|>", "<|return|>"):
        found = grown(f"{text}{end}xyz")
        assert (found.text, found.thought, found.lost) == ("Lyon", "Paris?", False)
        assert found.taken == len(Letters().ids(text)) + 1


def test_budgets_are_those_of_the_thought_and_of_the_answer():
    text = "<think>abc</think>Lyon is it"
    whole = len("<think>abc</think>")
    assert grown(text, thought_tokens=whole).text == "Lyon is i"
    short = grown(text, thought_tokens=whole - 1)
    assert short.lost and short.text == "" and short.thought == "abc" and short.taken == whole - 1
    assert grown(text, answer_tokens=4).text == "Lyon"
    assert grown("<thi", thought_tokens=3).lost


def test_a_model_that_answers_at_once_has_no_thought():
    for text in ("Lyon! It is", "<b>L!yon", "L"):
        found = grown(text)
        assert found.thought is None and found.text == text.split("!")[0]
    assert grown("Lyon it was", answer_tokens=4).text == "Lyon"
    assert grown("<t<|return|>").text == "<t"
    assert grown("Lyon<|end|>x", thought_tokens=0).text == "Lyon"
