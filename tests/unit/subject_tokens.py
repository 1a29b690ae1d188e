"""What the tokens of a subject must hold, told by decoding them."""

from palimpsest import EditRequest
from palimpsest.models import tokens


def require_subject_s_tokens(tokenizer, request: EditRequest) -> None:
    """The tokens found hold all of the subject, and one less at either end would not."""
    first, last = (
        tokens.subject_first_token(tokenizer, request, chat=None),
        tokens.subject_last_token(tokenizer, request, chat=None),
    )
    ids = tokenizer(request.prompt)["input_ids"]
    # A bracket may be glued to the subject, but no token less than these would hold all of it.
    assert request.subject in tokenizer.decode(ids[first : last + 1])
    assert request.subject not in tokenizer.decode(ids[first:last])
    assert request.subject not in tokenizer.decode(ids[first + 1 : last + 1])
