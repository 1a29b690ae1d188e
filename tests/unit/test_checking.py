"""An unedited model is asked about ordinary sentences once, and again when it has become another."""

from unittest import mock

import torch

import tiny
from palimpsest import method
from palimpsest.methods.checking import neutral_scores
from palimpsest.models import EditableModel


def test_ordinary_sentences_are_asked_again_only_of_another_model():
    model = tiny.tiny_model("llama")
    patch = method("ft", preset="none", epochs=1, look_again=False).edit(model, tiny.requests(1)).patch
    asked, real = [], EditableModel.score

    def counted(self, *given, **options):
        asked.append(self)
        return real(self, *given, **options)

    with mock.patch.object(EditableModel, "score", counted):
        first = neutral_scores(model)
        assert neutral_scores(model) == first and len(asked) == 1
        with model.patched(patch):
            assert neutral_scores(model) != first and len(asked) == 2
        assert neutral_scores(model) == first and len(asked) == 2
        with torch.no_grad():
            next(model.module.parameters()).add_(0.1)
        assert neutral_scores(model) != first and len(asked) == 3
        neutral_scores(tiny.tiny_model("llama"))
        assert len(asked) == 4
