"""Requests for edits (`EditRequest`) and the probes that test them (`Probe`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from palimpsest.errors import DataError, unknown_name
from palimpsest.wording import (
    Prompt,
    find_spelled,
    first_difference,
    looks_same,
    no_such_subject,
    printed,
    require_text,
    require_whole,
    stripped,
)

ProbeKind = Literal[
    "reliability",
    "generality",
    "locality.neighborhood",
    "locality.namesake",
    "locality.other_relation",
    "locality.other_answer",
    "locality.distracting",
    "locality.out_of_scope",
    "portability.one_hop",
    "portability.subject_alias",
    "portability.inverse",
    "portability.multi_hop",
    "portability.logical",
    "portability.reasoning",
]
_SHOWN = 80
PROBE_KINDS: tuple[str, ...] = get_args(ProbeKind)
PLACEHOLDER = re.compile(r"\{\s*(?:subject|0)?\s*\}", re.IGNORECASE)
"""Where a subject belongs in a template: `{}`, also written `{subject}` or `{0}`."""


@dataclass(frozen=True)
class Probe:
    """One question that tests an edit.

    Arguments:
        kind: which of the metrics it belongs to; one of `PROBE_KINDS`.
        prompt: the text the model continues.
        expected: the right continuation. Locality probes may leave it out: they compare with the base model.
        fact: identity of the fact it asks about, such as `"France|capital"`; when that fact is itself edited in
            the same run, the probe is left out of locality.
        accepts: other names of the expected answer. Free generation counts any of them as right; scorings that look
            at tokens take `expected` only.
        expected_old: for portability, what followed from the old fact: the answer that is given where the old fact can
            still be deduced. A `portability.reasoning` probe needs it.
        accepts_old: other names of that answer.

    Raises `DataError` for a blank prompt, `ConfigError` for an unknown kind.
    """

    kind: ProbeKind
    prompt: str
    expected: str | None = None
    fact: str | None = None
    accepts: tuple[str, ...] = ()
    expected_old: str | None = None
    accepts_old: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in PROBE_KINDS:
            raise unknown_name("kind of probe", str(self.kind), PROBE_KINDS)
        require_text(self.prompt, "prompt", where=f"a {self.kind} probe")
        for name in ("expected", "fact", "expected_old"):
            require_whole(getattr(self, name), name, where=f"the probe {self.prompt!r}")
        object.__setattr__(self, "prompt", stripped(self.prompt))
        if self.expected is not None:
            object.__setattr__(self, "expected", self.expected.strip())
        names = _other_names(self.accepts, self.expected, where=f"the probe {self.prompt!r}")
        object.__setattr__(self, "accepts", names)
        if not self.is_locality and not self.expected:
            raise DataError(
                "A probe has no expected answer.",
                expected=f"`expected` for a {self.kind} probe (only locality compares with the base model)",
                found=repr(self.expected),
                where=f"the probe {self.prompt!r}",
            )
        object.__setattr__(self, "expected_old", (self.expected_old or "").strip() or None)
        others = _other_names(self.accepts_old, self.expected_old, where=f"the probe {self.prompt!r}")
        object.__setattr__(self, "accepts_old", others)
        if not self._has_fitting_old_answer():
            raise DataError(
                "A probe's old answer cannot be used.",
                expected="`expected_old` for a portability.reasoning probe, and for other portability probes if known: "
                "what followed from the old fact, another answer than `expected`",
                found=f"a {self.kind} probe with expected_old = {self.expected_old!r}, expected = {self.expected!r}",
                where=f"the probe {self.prompt!r}",
            )

    def _has_fitting_old_answer(self) -> bool:
        if self.expected_old is None:
            return self.kind != "portability.reasoning"
        is_right = normalise(self.expected_old) in map(normalise, self.answers)
        return self.kind.startswith("portability") and not is_right

    @property
    def is_locality(self) -> bool:
        return self.kind.startswith("locality")

    @property
    def answers(self) -> tuple[str, ...]:
        """The expected answer, if there is one, and its other names."""
        return (*([self.expected] if self.expected else []), *self.accepts)

    @property
    def old_answers(self) -> tuple[str, ...]:
        """What followed from the old fact, if it is known, and its other names."""
        return (self.expected_old, *self.accepts_old) if self.expected_old else ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of what is given."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != ()}


@dataclass(frozen=True)
class EditRequest:
    """One fact that should become true, with the probes that test it.

    Arguments:
        prompt: the full text before the answer, such as `"The capital of France is"`; or a template such as
            `"The capital of {} is"`, which the subject is put into, there and in the probes' prompts. Spaces at its end
            are not part of it, newlines are.
        target_new: the answer it should get. Surrounding spaces are not part of it.
        subject: what the fact is about; must occur in the prompt. Methods that locate an edit need it. Case, width,
            accents' composition, quotes and spaces may differ: the prompt's spelling is taken.
        target_old: the answer it gets today. Methods that forget first need it.
        probes: questions that test the edit. The reliability probe is made from the prompt and need not be given.
        fact: identity of the fact, in the form that probes use.
        id: a name for records; made from the content when left out.
        joiner: what stands between the prompt (or a rephrasing) and its answer, where it is not what
            `palimpsest.wording.joining.separator` says.
        accepts: other names of the new answer, as right as it.
        accepts_old: other names of the old answer.

    Raises `DataError` that names the field, what was expected and what was found.
    """

    prompt: str
    target_new: str
    subject: str | None = None
    target_old: str | None = None
    probes: tuple[Probe, ...] = ()
    fact: str | None = None
    id: str = ""
    joiner: str | None = None
    accepts: tuple[str, ...] = ()
    accepts_old: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"the edit {self.id or self.prompt!r}"
        require_text(self.prompt, "prompt", where=where)
        require_text(self.target_new, "target_new", where=where)
        for name in ("target_old", "fact", "id", "joiner"):
            require_whole(getattr(self, name), name, where=where)
        object.__setattr__(self, "prompt", self._joined(self.prompt))
        object.__setattr__(self, "target_new", self.target_new.strip())
        object.__setattr__(self, "accepts", _other_names(self.accepts, self.target_new, where=where))
        object.__setattr__(self, "accepts_old", _other_names(self.accepts_old, self.target_old, where=where))
        object.__setattr__(self, "probes", tuple(self.probes))
        if self.target_old is not None:
            require_text(self.target_old, "target_old", where=where)
            object.__setattr__(self, "target_old", self.target_old.strip())
            if looks_same(self.target_old, self.target_new):
                raise _nothing_to_edit(self.target_old, self.target_new, where)
        if self.subject is not None:
            require_text(self.subject, "subject", where=where)
            object.__setattr__(self, "subject", self.subject.strip())
            self._fill_template(self.subject.strip())
            start, end = self.subject_span()
            object.__setattr__(self, "subject", self.prompt[start:end])
        if not self.id:
            content = json.dumps(
                [self.prompt, self.target_new, self.subject, self.target_old, *([self.joiner] if self.joiner else [])]
            )
            object.__setattr__(self, "id", hashlib.sha256(content.encode()).hexdigest()[:12])

    def subject_span(self) -> tuple[int, int]:
        """Character offsets `(start, end)` of the subject's last occurrence in the prompt, as whole words if it can be.

        Raises `DataError` when there is no subject or it is not in the prompt.
        """
        if self.subject is None:
            raise DataError(
                "An edit has no subject.",
                expected="`subject`: the words in the prompt that the fact is about",
                found="none",
                where=f"the edit {self.prompt!r}",
                remedy="add a `subject` field",
            )
        span = find_spelled(self.subject, self.prompt)
        if span is None:
            raise no_such_subject(self.subject, self.prompt)
        return span

    def _fill_template(self, subject: str) -> None:
        """Puts the subject where the prompt has a placeholder for it; the probes are then templates too."""
        if PLACEHOLDER.search(self.prompt) and find_spelled(subject, self.prompt) is None:
            probes = tuple(replace(one, prompt=filled(one.prompt, subject)) for one in self.probes)
            object.__setattr__(self, "prompt", self._joined(filled(self.prompt, subject)))
            object.__setattr__(self, "probes", probes)

    def all_probes(self) -> tuple[Probe, ...]:
        """The reliability probe, made from the edit itself, followed by the others."""
        given = [name for probe in self.probes if probe.kind == "reliability" for name in probe.accepts]
        own = Probe("reliability", self.prompt, self.target_new, self.fact, (*self.accepts, *given))
        return (own, *(self._joined_probe(probe) for probe in self.probes if probe.kind != "reliability"))

    def reversed_to_old(self) -> EditRequest:
        """The request that teaches the old answer: what F-Learning's forgetting step learns in order to subtract.

        Raises `DataError` when there is no old answer.
        """
        if self.target_old is None:
            raise DataError(
                "An edit has no old answer.",
                expected="`target_old`: what the model says today, so that it can be forgotten",
                found="none",
                where=f"the edit {self.prompt!r}",
                remedy="add `target_old` to the record, or take a method that does not forget first",
            )
        return replace(
            self,
            target_new=self.target_old,
            target_old=None,
            probes=(),
            id=f"{self.id}-old",
            accepts=self.accepts_old,
            accepts_old=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back."""
        record = asdict(self)
        record["probes"] = [probe.to_dict() for probe in self.probes]
        return {key: value for key, value in record.items() if value is not None and value not in ([], ())}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EditRequest:
        """Reads what `to_dict` wrote. Raises `DataError` for a record that is not one."""
        try:
            probes = tuple(Probe(**probe) for probe in record.get("probes") or ())
            return cls(**{**record, "probes": probes})
        except TypeError as error:
            where = printed(f"record {record!r}"[: 2 * _SHOWN])
            raise DataError("A record is not an edit.", found=str(error), where=where) from error

    def _joined(self, prompt: str) -> str:
        text = stripped(prompt)
        return text if self.joiner is None else Prompt(text, self.joiner)

    def _joined_probe(self, probe: Probe) -> Probe:
        """A probe with what stands behind its prompt, where that is the edit's prompt in other words."""
        if self.joiner is None or probe.kind != "generality":
            return probe
        return replace(probe, prompt=self._joined(probe.prompt))


def normalise(text: str) -> str:
    """Case and white space folded: for comparing answers and prompts, never for showing them."""
    return " ".join(text.split()).casefold()


def filled(template: str, subject: str) -> str:
    """The template with the subject instead of each `{}`."""
    return PLACEHOLDER.sub(lambda _: subject, template)


def require_filled(edit: EditRequest) -> None:
    """Raises `DataError` for an edit that has a place for a subject, in its prompt or a probe's, and no subject.

    A text that the model is really to read braces in is fine where the subject is said and stands in the prompt.
    """
    if edit.subject is not None:
        return
    texts = [("the prompt", edit.prompt), *((f"the {one.kind} probe", one.prompt) for one in edit.probes)]
    for name, text in texts:
        if (place := PLACEHOLDER.search(text)) is not None:
            raise DataError(
                "An edit has a place for a subject and no subject.",
                expected=f"`subject`: the text for {place[0]}",
                found=f"{name} {text!r}",
                where=f"the edit {edit.id!r}",
                remedy="add a `subject` (--subject); one that occurs in the prompt leaves the braces as they are",
            )


def _nothing_to_edit(old: str, new: str, where: str) -> DataError:
    if old == new:
        found = f"both are {new!r}"
    else:
        found = f"{old!r} and {new!r}, which look the same; {first_difference(old, new)}"
    return DataError(
        "The new answer equals the old one, so there is nothing to edit.",
        expected="`target_new` to differ from `target_old` in what a reader sees",
        found=found,
        where=where,
        remedy="drop the record, or correct one of the two",
    )


def _other_names(given: Any, name: str | None, *, where: str) -> tuple[str, ...]:
    """Other names of an answer, each once, without the answer itself."""
    names: dict[str, str] = {}
    if not isinstance(given, str | list | tuple):
        require_whole(given, "accepts", where=where)
    for one in (given,) if isinstance(given, str) else given or ():
        require_text(one, "accepts", where=where)
        names.setdefault(normalise(one), one.strip())
    names.pop(normalise(name or ""), None)
    return tuple(names.values())
