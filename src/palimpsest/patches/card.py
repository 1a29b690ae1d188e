"""The card of a patch, an adapter or an edited model: what was edited, how, how well it holds, and how to undo it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.files import to_json
from palimpsest.patches.adapter_limits import VLLM_RANKS, vllm_rank
from palimpsest.patches.base import Manifest
from palimpsest.provenance import versions
from palimpsest.wording import printed
from palimpsest.world import BUNDLED, bundled_name

CARD = "README.md"
CONTENTS = "palimpsest.json"
FolderForm = Literal["patch", "peft", "merged", "patched"]

_LISTED_EDITS = 200
# What Markdown, and the hub's additions to it, read as more than a character; a colon or a dot where an address may be.
_ACTIVE = re.compile(r"[\\`*_\[\]|~$#&@]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
_LIBRARIES = {"patch": "palimpsest", "peft": "peft", "merged": "transformers", "patched": "palimpsest"}
# How the hub shows what became of the base model.
_RELATIONS = {"patch": "adapter", "peft": "adapter", "merged": "finetune", "patched": "adapter"}


class Contents(BaseModel):
    """The contents of a folder of edits. Written as `palimpsest.json` beside adapters and merged models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: FolderForm
    base: str
    """The base model: a hub id, a bundled model's name, or a folder."""
    fingerprint: str | None = None
    """Of the base model's weights."""
    auto_class: str = Field(default="AutoModelForCausalLM", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The transformers class that loads the base model."""
    ranks: dict[str, int] = {}
    """Of an adapter: layer to rank."""
    patches: list[Manifest]

    @property
    def edits(self) -> list[dict[str, Any]]:
        """All edits, in the patches' order."""
        return [edit for patch in self.patches for edit in patch.edits]


@dataclass(frozen=True)
class Measured:
    """How well the edits hold, as far as it was measured.

    Arguments:
        source: where the numbers come from, in words.
        answers: prompt to the model's answers (before, after).
        scores: scoring to metric to `mean`, `low`, `high` (the 95% interval) and `n`.
    """

    source: str
    answers: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


def card(contents: Contents, *, repo: str | None = None, measured: Measured | None = None) -> str:
    """The card's text: the hub's metadata, then what a reader wants to know.

    Arguments:
        repo: the hub id it is published under; left out for a folder on this machine.
        measured: how well the edits hold, if anyone knows.
    """
    contents = contents.model_copy(update={"base": bundled_name(contents.base) or contents.base})
    sections = [
        _metadata(contents),
        f"# {plain(Path(contents.base).name)}, edited",
        _introduction(contents),
        "## The edits\n\n" + _edits(contents.edits, measured),
        "## How they were made\n\n" + _making(contents.patches),
        *(["## How well they hold\n\n" + _scores(measured)] if measured and measured.scores else []),
        "## How to use it\n\n" + _use(contents, repo),
        "## How to undo it\n\n" + _undo(contents),
        "Made with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def plain(text: object) -> str:
    """One line of Markdown that shows the text as it is: no tag, link, image, formula or code, no end of a cell."""
    return _ACTIVE.sub(r"\\\g<0>", " ".join(printed(str(text)).split())).replace("<", "&lt;")


def code(text: object) -> str:
    """A code span that shows the text, but for its backquotes. Not for tables, where a bar would end the cell."""
    return f"`{' '.join(printed(str(text)).split()).replace('`', chr(39)) or ' '}`"


def literal(text: object) -> str:
    """The text as Python code has it, in double quotes."""
    return json.dumps(printed(str(text)), ensure_ascii=False)


def is_hub_id(base: str) -> bool:
    """Whether a base model is on the hub, as far as its name says: an owner and a name, and no folder here."""
    return base.count("/") == 1 and base[:1] not in ("/", ".", "~") and not os.path.exists(base)


def _metadata(contents: Contents) -> str:
    from huggingface_hub import ModelCardData

    tags = ["knowledge-editing", "palimpsest", *(["lora"] if contents.form == "peft" else [])]
    fields: dict[str, Any] = {"library_name": _LIBRARIES[contents.form], "tags": tags}
    if is_hub_id(contents.base):
        fields |= {"base_model": contents.base, "base_model_relation": _RELATIONS[contents.form]}
    return f"---\n{ModelCardData(**fields).to_yaml().strip()}\n---"


def _introduction(contents: Contents) -> str:
    patches, edits = _count(len(contents.patches), "patch", "patches"), _count(len(contents.edits), "fact", "facts")
    low, high = min(contents.ranks.values(), default=0), max(contents.ranks.values(), default=0)
    how = {
        "patch": "changed by",
        "merged": "merged with",
        "patched": "under",
        "peft": f"and, as one LoRA adapter ({_count(len(contents.ranks), 'layer', 'layers')} of rank "
        + (f"{low}" if low == high else f"{low} to {high}")
        + "),",
    }[contents.form]
    text = f"{code(contents.base)} {how} {patches} of Palimpsest: {edits} edited."
    if contents.fingerprint is None:
        return text
    return text + (
        f" Made for weights with the fingerprint {code(contents.fingerprint)}"
        + (", which is checked." if contents.form in ("patch", "patched") else "; on others it is something else.")
    )


def _edits(edits: Sequence[Mapping[str, Any]], measured: Measured | None) -> str:
    answers = measured.answers if measured else {}
    columns = ["prompt", "new answer", "old answer", *(["said before", "says now"] if answers else [])]
    rows = []
    for edit in edits[:_LISTED_EDITS]:
        cells = [edit.get(name) for name in ("prompt", "target_new", "target_old")]
        rows.append(cells + (list(answers.get(str(edit.get("prompt")), (None, None))) if answers else []))
    more = f"\n\nand {len(edits) - _LISTED_EDITS} more." if len(edits) > _LISTED_EDITS else ""
    return _table(columns, rows) + more


def _making(patches: Sequence[Manifest]) -> str:
    rows = [
        (one.label, one.method, one.preset, one.seed, len(one.tensor_layout) or None, one.created) for one in patches
    ]
    table = _table(("patch", "method", "preset", "seed", "tensors changed", "made"), rows)
    options = [f"Options of {code(one.label)}:\n\n{_fenced(one.config)}" for one in patches if one.config]
    return "\n\n".join([table, *options])


def _scores(measured: Measured) -> str:
    metrics = list(dict.fromkeys(name for scores in measured.scores.values() for name in scores))
    rows = [[name, *(_estimate(scores.get(name)) for scores in measured.scores.values())] for name in metrics]
    table = _table(("metric", *(scoring.replace("_", " ") for scoring in measured.scores)), rows)
    return f"{plain(measured.source)} Percent, with the 95% interval and the number of probes.\n\n{table}"


def _estimate(found: Mapping[str, Any] | None) -> str | None:
    if found is None or found.get("mean") is None:
        return None
    return f"{100 * found['mean']:.0f} ({100 * found['low']:.0f} to {100 * found['high']:.0f}; {found['n']})"


def _use(contents: Contents, repo: str | None) -> str:
    base, is_bundled = literal(contents.base), contents.base in BUNDLED
    # Transformers knows a bundled model by its folder only.
    source = f"bundled_path({base})" if is_bundled else base
    place = literal(repo or "this folder")
    folder = f"snapshot_download({place})" if repo else place
    download = (
        ["from huggingface_hub import snapshot_download"] if repo and contents.form in ("patch", "patched") else []
    )
    lines = {
        "patch": [
            *download,
            "import palimpsest as ps",
            "",
            f"model = ps.load({base})",
            f"patch = ps.load_patch({folder})",
            "with model.patched(patch):",
            f"    print(model.generate({_first_prompt(contents)}))",
        ],
        "peft": [
            "import peft, transformers",
            *(["from palimpsest.world import bundled_path"] if is_bundled else []),
            "",
            f"base = transformers.{contents.auto_class}.from_pretrained({source})",
            f"model = peft.PeftModel.from_pretrained(base, {place})",
        ],
        "patched": [
            *download,
            "import palimpsest as ps",
            "",
            f"model = ps.load({folder})",
            f"print(model.generate({_first_prompt(contents)}))",
        ],
        "merged": [
            "import transformers",
            "",
            f"model = transformers.{contents.auto_class}.from_pretrained({place})",
        ],
    }[contents.form]
    python = "```python\n" + "\n".join(lines) + "\n```"
    return python if contents.form != "peft" else "\n\n".join([python, *_serving(contents, repo)])


def _serving(contents: Contents, repo: str | None) -> list[str]:
    """How servers load an adapter, as far as its rank lets them."""
    limit = vllm_rank(max(contents.ranks.values(), default=0))
    if limit is None:
        return [f"vLLM loads adapters of a rank of at most {VLLM_RANKS[-1]}; this one needs peft."]
    base, place = shlex.quote(contents.base), shlex.quote(repo or "this folder")
    if contents.base in BUNDLED:
        # A server knows it by its folder only.
        print_path = f"from palimpsest.world import bundled_path; print(bundled_path({contents.base!r}))"
        base = f'"$(python -c "{print_path}")"'
    command = f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules edited={place}"
    return [
        "With vLLM, under the model name `edited`; the base model answers under its own:",
        f"```bash\n{command.replace('```', '')}\n```",
        "Ask it one of the prompts below `The edits` after loading: a server that finds no place for an adapter may "
        "answer as the base model does, without an error.",
    ]


def _undo(contents: Contents) -> str:
    base = code(contents.base)
    return {
        "patch": "Leave the `with` block: the model is what it was, bit for bit. The base model's files are never "
        "changed by a patch.",
        "peft": "The base model is not in this folder and is not changed by it. Load it with "
        '`peft.PeftModel.from_pretrained(base, "this folder")`, and take it off again with `unload()`.',
        "patched": f"The base model, {base}, is not in this folder and is not changed by it: load it by its name.",
        "merged": "Nothing in this folder remembers the old weights. To go back, load the base model "
        f"{base}; to take back one of several patches, merge the others into the base model again with "
        "`palimpsest apply`.",
    }[contents.form]


def _first_prompt(contents: Contents) -> str:
    return literal(next((edit.get("prompt") for edit in contents.edits), "Hello"))


def _fenced(options: Mapping[str, Any]) -> str:
    text = to_json(dict(options), indent=1)
    return f"```json\n{text.replace('```', '` ` `')}\n```"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(plain, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("" if cell is None else plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
