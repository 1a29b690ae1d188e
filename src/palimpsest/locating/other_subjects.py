"""A fact's own prompt about others: names to put in the subject's place, and prompts about other things.

What damages a model first is the edit's own wording, which other facts share. So an edit is trained apart from its
prompt about other subjects, and is tested at it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from palimpsest.requests import EditRequest, normalise

_SCRIPTS = {"CYRILLIC": "cyrillic", "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "ARABIC": "arabic"}


def well_known_subjects(text: str = "") -> tuple[str, ...]:
    """People, places, organisations, products and works that most models have read about, in the script of a text: few
    in Latin letters, and of every kind.
    """
    script = script_of(text)
    return tuple(_bundled()["well_known"] if script == "latin" else _bundled()[script]["names"])


def subjects_beside(text: str) -> list[str]:
    """Many names, in the script of a text."""
    return list(_bundled()[script_of(text)]["names"])


def subjects_alike(subject: str) -> list[str]:
    """Names that begin or end as a subject of several words does, with words of well-known ones in place of the rest.

    `Nokia N70` gives `Nokia`, `Nokia Einstein`, `London N70` and their kin; a subject of one word gives none.
    """
    words = subject.split()
    if len(words) < 2:
        return []
    found = [words[0], " ".join(words[:-1])]
    for other in (name.split() for name in well_known_subjects(subject)):
        found += [f"{words[0]} {other[-1]}", " ".join([*words[:-1], other[-1]]), f"{other[0]} {words[-1]}"]
    return [name for name in dict.fromkeys(found) if normalise(name) != normalise(subject)]


def unrelated_prompts(requests: Sequence[EditRequest]) -> list[str]:
    """Prompts about other things, in the scripts of the edits: not those edited, nor others about their subjects."""
    edited = {normalise(request.prompt) for request in requests}
    scripts = dict.fromkeys(("latin", *(script_of(request.prompt) for request in requests)))
    found = [prompt for script in scripts for prompt in _bundled()[script]["unrelated"]]
    subjects = [normalise(request.subject) for request in requests if request.subject]
    return [
        prompt
        for prompt in found
        if normalise(prompt) not in edited and not any(subject in normalise(prompt) for subject in subjects)
    ]


def about(request: EditRequest, name: str) -> EditRequest:
    """The request with another subject wherever its own stands, without probes. Raises `DataError` for no subject."""
    start, end = request.subject_span()
    before, subject, after = request.prompt[:start], request.prompt[start:end], request.prompt[end:]
    again = re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)")
    prompt = again.sub(lambda _: name, before) + name + again.sub(lambda _: name, after)
    return replace(request, prompt=prompt, subject=name, probes=(), id="")


def script_of(text: str) -> str:
    """Which of the bundled lists reads naturally beside a text: Latin unless it has letters of another script."""
    names = (unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    found = {_SCRIPTS[name] for name in names if name in _SCRIPTS}
    return next((script for script in ("kana", "han", "cyrillic", "arabic") if script in found), "latin")


@cache
def _bundled() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("other_subjects.toml").read_text(encoding="utf-8"))
