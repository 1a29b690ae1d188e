"""The criteria of RippleEdits, which KnowEdit took over, as kinds of probes.

Two of them are parted by what a question asks, since the files do not say it. A consequence of the new fact names the
subject; a question that does not name it reaches the fact over another one, which is a chain. And of what follows
logically, the question about the new answer whose answer is the subject is the inverse; the rest follows by a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from palimpsest.datasets.base import Partial
from palimpsest.errors import DataError, PalimpsestError, near_matches
from palimpsest.requests import PROBE_KINDS, EditRequest, Probe, ProbeKind, normalise

_OWN: Mapping[str, ProbeKind] = {
    "neighborhood": "locality.neighborhood",
    "distracting": "locality.distracting",
    "namesake": "locality.namesake",
    "other_relation": "locality.other_relation",
    "other_answer": "locality.other_answer",
    "out_of_scope": "locality.out_of_scope",
    "one_hop": "portability.one_hop",
    "multi_hop": "portability.multi_hop",
    "two_hop": "portability.multi_hop",
    "subject_alias": "portability.subject_alias",
    "inverse": "portability.inverse",
    "logical": "portability.logical",
    "rephrase": "generality",
}
_PUBLISHED: Mapping[str, ProbeKind] = {
    "Subject_Aliasing": "portability.subject_alias",
    "Compositionality_I": "portability.one_hop",
    "Compositionality_II": "portability.multi_hop",
    "Relation_Specificity": "locality.other_relation",
    # So spelled in the published description of the format.
    "Relation_Specifity": "locality.other_relation",
    "Forgetfulness": "locality.other_answer",
}
PARTED = ("Reasoning", "Logical_Generalization")
KINDS: Mapping[str, ProbeKind] = MappingProxyType({**_OWN, **_PUBLISHED})
"""Kinds of probes by the names that data sets and other tools give them; case, spaces and dashes do not count."""
_SYNONYMS: Mapping[str, ProbeKind] = {
    "neighbourhood": "locality.neighborhood",
    "neighbor": "locality.neighborhood",
    "neighbors": "locality.neighborhood",
    "neighbour": "locality.neighborhood",
    "locality": "locality.neighborhood",
    "distracting_neighborhood": "locality.distracting",
    "distracting_neighbourhood": "locality.distracting",
    "distracting_neighbor": "locality.distracting",
    "distract": "locality.distracting",
    "unrelated_relation": "locality.other_relation",
    "other_attribution": "locality.other_relation",
    "other_attribute": "locality.other_relation",
    "unrelated": "locality.out_of_scope",
    "random": "locality.out_of_scope",
    "nq": "locality.out_of_scope",
    "onehop": "portability.one_hop",
    "1_hop": "portability.one_hop",
    "portability": "portability.one_hop",
    "2_hop": "portability.multi_hop",
    "twohop": "portability.multi_hop",
    "three_hop": "portability.multi_hop",
    "mhop": "portability.multi_hop",
    "multihop": "portability.multi_hop",
    "subject_replace": "portability.subject_alias",
    "alias": "portability.subject_alias",
    "inverse_relation": "portability.inverse",
    "reverse": "portability.inverse",
    "reversed_relation": "portability.inverse",
    "reverse_relation": "portability.inverse",
    "paraphrase": "generality",
    "generality": "generality",
    "personas": "generality",
    "persona": "generality",
}


def _key(name: str) -> str:
    short = name.rsplit(".", 1)[-1] if name.split(".")[0] in ("locality", "portability") else name
    return _letters(short)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_WHOLE: Mapping[str, ProbeKind] = MappingProxyType(
    {_letters(kind): cast(ProbeKind, kind) for kind in PROBE_KINDS if "." in kind}
)
"""Kinds by their own whole names, which say more than a criterion: `portability.reasoning` is none of RippleEdits'."""
_BY_KEY = MappingProxyType({_key(name): kind for table in (_SYNONYMS, KINDS) for name, kind in table.items()})


def kind_of(criterion: str, edit: EditRequest, prompt: str, answers: Sequence[str]) -> ProbeKind | None:
    """The kind of probe that a question of a criterion is; `None` for an unknown criterion."""
    if _letters(criterion) in _WHOLE:
        return _WHOLE[_letters(criterion)]
    key = _key(criterion)
    if key == "reasoning":
        return "portability.one_hop" if _names(prompt, edit.subject) else "portability.multi_hop"
    if key == "logicalgeneralization":
        is_inverse = _names(prompt, edit.target_new) and normalise(edit.subject or "") in map(normalise, answers)
        return "portability.inverse" if is_inverse else "portability.logical"
    return _BY_KEY.get(key)


def is_own_name(criterion: str) -> bool:
    """Whether this is a known name that no published file uses."""
    is_known = _letters(criterion) in _WHOLE or _key(criterion) in _BY_KEY
    return criterion not in _PUBLISHED and criterion not in PARTED and is_known


def make_probe(
    criterion: str, edit: EditRequest, prompt: Any, answers: Sequence[str], *, fact: str | None = None
) -> Probe | str | DataError:
    """Returns the probe, or the reason why it is not asked, or the error in it.

    Arguments:
        criterion: as the file calls it.
        edit: what is edited, without probes.
        prompt: the question.
        answers: any of them is right; the first is the expected one.
        fact: identity of what it asks about.
    """
    kind = kind_of(criterion, edit, str(prompt), answers)
    if kind is None:
        return unknown_criterion(criterion)
    if normalise(str(prompt)) == normalise(edit.prompt):
        return f"a question of {criterion} is the edited prompt itself"
    if kind == "generality" and not answers:
        answers = [edit.target_new]
    try:
        return Probe(kind, prompt, answers[0] if answers else None, fact, tuple(answers[1:]))
    except PalimpsestError as error:
        return DataError(
            f"{criterion}: {error.problem[:1].lower()}{error.problem[1:]}",
            expected=error.expected if answers else f"an answer beside the question, which is about a {kind}",
            found=error.found,
            where=f"field `{criterion}`",
        )


def unknown_criterion(criterion: str) -> DataError:
    """The error for a kind of question that is not known, with its near matches."""
    known = [*KINDS, *PARTED]
    close = near_matches(criterion, [*known, *_SYNONYMS])
    return DataError(
        f"The criterion {criterion!r} is not known.",
        expected=f"one of {', '.join(known)}",
        found=repr(criterion),
        where=f"field `{criterion}`",
        remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else "rename it to one of these, or remove it",
    )


def partial(edit: EditRequest, made: Sequence[Probe | str | DataError], **more: Any) -> Partial:
    """The edit with the probes that could be made, without repetitions, and an account of the others.

    Arguments:
        edit: what is edited, without probes.
        made: what `make_probe` gave.
        more: further parts of the `Partial`.
    """
    probes = tuple(dict.fromkeys(one for one in made if isinstance(one, Probe)))
    left_out = tuple(one for one in made if not isinstance(one, Probe))
    return Partial(replace(edit, probes=probes), left_out, **more)


def _names(prompt: str, name: str | None) -> bool:
    return bool(name) and normalise(name or "") in normalise(prompt)
