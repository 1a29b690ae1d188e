"""`auto` on a pretrained model, with no option at all: facts hold, little else changes, the patch is small."""

import palimpsest as ps

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
