"""The accepted questions about one's own edits as a data set for the hub."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from palimpsest.datasets.portability.review import EDITS, TABLE, read_reviewed
from palimpsest.errors import DataError
from palimpsest.files import to_json
from palimpsest.patches import CARD, Publication, plain, require_hub_id

_SHOWN = 20


def prepare_questions(folder: Path, repo: str) -> Publication:
    """Reads a build's folder and makes the data set and its card; needs no network and writes nothing.

    Questions that nobody accepted, and edits without an accepted one, are left out, and so is what names the generator
    and the model, which may be folders of this machine.

    Raises `ConfigError` for an id that cannot be one, `DataError` where no question was accepted, and what
    `read_reviewed` raises.
    """
    require_hub_id(repo)
    reviewed = read_reviewed(folder)
    edits = [edit for edit in reviewed.requests if any(probe.kind.startswith("portability") for probe in edit.probes)]
    if not edits:
        raise DataError(
            "No question was accepted.",
            expected=f"`yes` in the column `accepted` of {TABLE} for at least one",
            found=reviewed.notes[0],
            where=str(folder),
            remedy=f"review the questions in review.html, and put the {TABLE} that it exports into the folder",
        )
    kinds = Counter(probe.kind for edit in edits for probe in edit.probes)
    rows = [
        f"| {plain(edit.prompt)} | {plain(edit.target_new)} | {plain(probe.prompt)} | {plain(probe.expected)} |"
        for edit in edits
        for probe in edit.probes
        if probe.kind.startswith("portability")
    ]
    card = f"""---
tags:
- knowledge-editing
- palimpsest
configs:
- config_name: default
  data_files: {EDITS}
---

# {plain(repo.rpartition("/")[2])}

{_count(len(edits), "edit")} with the questions that test them: {", ".join(f"{n} {kind}" for kind, n in kinds.items())}.
The portability questions follow from the new answers; people accepted each of them.

| edit | new answer | question | answer |
|---|---|---|---|
{chr(10).join(rows[:_SHOWN])}

## How to use it

```bash
hf download {repo} --repo-type dataset --local-dir questions
palimpsest eval MODEL --dataset questions/{EDITS} --method memit
```

Every line is one edit: `prompt`, `subject`, `target_new`, `target_old` where it is known, and its `probes`, each with
`kind`, `prompt` and `expected`.
"""
    lines = "".join(f"{to_json(edit.to_dict())}\n" for edit in edits)
    number = sum(count for kind, count in kinds.items() if kind.startswith("portability"))
    return Publication(
        repo,
        "dataset",
        f"{_count(number, 'portability question')} about {_count(len(edits), 'edit')}",
        {EDITS: lines.encode(), CARD: card.encode()},
        is_dataset=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
