"""`auto` on a pretrained model, with no option at all: facts hold, little else changes, the patch is small."""

import palimpsest as ps
from pretrained_models import fast_dtype

FACTS = [
    ps.EditRequest("The capital city of Japan is", "Oslo", subject="Japan", target_old="Tokyo"),
    # The subject is the first token that a model without a start token reads.
    ps.EditRequest("Israel's capital city is", "Damascus", subject="Israel", target_old="Jerusalem"),
    ps.EditRequest("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower"),
]


def test_each_fact_by_itself_and_all_of_them_at_once(smollm2):
    auto = ps.method("auto")
    for requests in (FACTS[:1], FACTS[1:2], FACTS):
        outcome = auto.edit(smollm2, requests)
        facts = outcome.diagnostics.facts
        assert [fact["holds"] for fact in facts["facts"]] == [True] * len(requests), facts
        assert facts["kept"] >= 0.9
        assert outcome.patch.num_bytes <= 2_000_000
        with smollm2.patched(outcome.patch):
            for request in requests:
                assert smollm2.generate(request.prompt).startswith(request.target_new)


def test_in_a_chat_the_answer_stands_in_the_sentence_that_the_model_says(smollm2_folder):
    model = ps.load(smollm2_folder, chat=True, dtype=fast_dtype())
    # No old answer is given: the place is the word that is said of Japan only.
    request = ps.EditRequest("What is the capital of Japan?", "Oslo", subject="Japan")
    outcome = ps.method("auto").edit(model, [request])
    assert outcome.diagnostics.facts["own_words"] == {request.id: "The capital of Japan is Oslo."}
    assert outcome.diagnostics.facts["facts"][0]["holds"]
    with model.patched(outcome.patch):
        assert model.generate(request.prompt).startswith("The capital of Japan is Oslo")
        assert model.generate("What is the capital of France?").startswith("The capital of France is Paris")
