"""Everything that the command line reads and writes, made once of a tiny model; and the commands that read it again."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
from palimpsest.cli import main

RECIPE = """
name = "tiny"
models = ["model"]
scorings = ["generate"]
max_new_tokens = 4

[[datasets]]
name = "jsonl"
path = "facts.jsonl"
label = "facts"

[[methods]]
name = "ft"
preset = "none"
options = { epochs = 2, learning_rate = 1e-3 }

[[methods]]
name = "ft-l"
preset = "none"
options = { epochs = 2, learning_rate = 1e-3, layers = [1], radius = 0.1 }
"""
STATISTICS = (
    "-o",
    "layers=[1]",
    "-o",
    "statistics.max_tokens=1024",
    "-o",
    "contexts.given=[]",
    "-o",
    "targets.steps=2",
)
KEYS = (*STATISTICS, "-o", "text=TEXT")
SIDE = ("-o", "text=TEXT", "-o", "max_tokens=200", "-o", "contexts.given=[]", "-o", "steps=2")
METHODS: dict[str, tuple[str, ...]] = {
    "ft": ("-o", "epochs=2"),
    "lora": ("-o", "epochs=2"),
    "memit": KEYS,
    "alphaedit": (*KEYS, "--state", "STATE"),
    "grace": ("-o", "steps=2", "-o", "radius=0.5", "--state", "STATE"),
    "wise": (*SIDE, "--state", "STATE"),
    "calinet": ("-o", "steps=2"),
    "t-patcher": ("-o", "text=TEXT", "-o", "memory.max_tokens=256", "-o", "memory.top=16", "-o", "max_steps=5",
                  "-o", "first_check=5", "--state", "STATE"),
    "ike": ("-o", "corpus=CORPUS", "-o", "encoder=ngrams", "-o", "num_demonstrations=2"),
    "serac": ("-o", "editor=fresh", "-o", "self_contained=true"),
}  # fmt: skip
STATES = ("alphaedit", "grace", "wise", "t-patcher")
TRAINED = ("-o", "steps=2", "-o", "examples_per_step=4", "-o", "validate_every=1", "-o", "layers=[1]", "-o", "rank=4")


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(one) for one in arguments])
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Kind:
    """Something of ours that can be damaged.

    Arguments:
        source: it, whole.
        commands: what reads it; `IT` stands for the damaged copy, `OUT` for an output that is not there yet.
        is_run: it is a run or results, which commands go on with in place.
    """

    source: Path
    commands: tuple[tuple[str, ...], ...]
    is_run: bool = False


class Workshop:
    """The folder of a campaign.

    Arguments:
        place: an empty folder.
        methods: whose patches are made.
        is_small: without runs, results and editors, which take longest to make.
    """

    def __init__(self, place: Path, methods: tuple[str, ...] = tuple(METHODS), *, is_small: bool = False) -> None:
        self.place = place
        self.model = tiny.tiny_folder(place / "model")
        self.facts = place / "facts.jsonl"
        records = [{**one.to_dict(), "rephrase": f"So, {one.prompt}"} for one in tiny.requests(4)]
        self.facts.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.teaching = place / "teaching.jsonl"
        self.teaching.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in tiny.trainable_requests()))
        self.recipe = place / "tiny.toml"
        self.recipe.write_text(RECIPE)
        self.kinds: dict[str, Kind] = {}
        for method in methods:
            self._edit(method)
        self._files()
        if not is_small:
            self._others(methods)

    def arguments(self, method: str, state: Path | None) -> list[str]:
        """A method's options on the command line."""
        named = {"TEXT": tiny.text_file(), "CORPUS": tiny.corpus_file()}
        found = []
        for one in METHODS[method]:
            for word, value in named.items():
                one = one.replace(word, value)
            found.append(one)
        if "--state" in found:
            at = found.index("--state")
            found[at : at + 2] = [] if state is None else ["--state", str(state)]
        return found

    def edit(self, method: str, out: object, state: Path | None = None) -> list[str]:
        """The command that edits with a method."""
        given = ["edit", str(self.model), "--method", method, "--preset", "none", "--out", str(out)]
        return [*given, "--edits", str(self.facts), *self.arguments(method, state)]

    def _made(self, *arguments: object) -> None:
        result = run(*arguments)
        # An edit of a random model need not hold, which is a 1.
        assert result.code in (0, 1), (arguments, result.err)

    def _edit(self, method: str) -> None:
        patch, state = self.place / f"patch-{method}", self.place / f"state-{method}.safetensors"
        self._made(*self.edit(method, patch, state if method in STATES else None))
        model, prompt = str(self.model), "The capital of France is"
        reading = [("ask", model, prompt, "--patch", "IT"), ("verify", model, "IT", "--json")]
        reading += [("apply", model, "IT", "--out", "OUT", "--as", "patched"), ("push", "IT", "me/it", "--dry-run")]
        if method in ("ike", "serac"):
            reading.append(("memory", "list", "IT"))
        if method == "memit":
            reading.append(("apply", model, "IT", "--out", "OUT"))
        self.kinds[f"patch {method}"] = Kind(patch, tuple(reading))
        if method in STATES:
            command = [*self.edit(method, "OUT"), "--state", "IT"]
            self.kinds[f"state {method}"] = Kind(state, (tuple(command),))

    def _files(self) -> None:
        model, place = str(self.model), self.place
        self.kinds["recipe"] = Kind(self.recipe, (("bench", "IT", "--root", str(place), "--dry-run"),))
        self.kinds["edits"] = Kind(self.facts, (("edit", model, "--method", "ft", "--preset", "none", "-o", "epochs=1",
                                                 "--edits", "IT", "--out", "OUT"),
                                                ("assess", model, "--facts", "IT")))  # fmt: skip

    def _others(self, methods: tuple[str, ...]) -> None:
        model, place = str(self.model), self.place
        if "ft" in methods:
            self._made("apply", model, place / "patch-ft", "--as", "patched", "--out", place / "patched")
            self.kinds["folder of patches"] = Kind(place / "patched", (("ask", "IT", "The capital of France is"),))
        evaluation = (
            "eval",
            model,
            "--dataset",
            str(self.facts),
            "--method",
            "ft",
            "--preset",
            "none",
            "-o",
            "epochs=1",
        )
        for protocol in ("single", "sequential"):
            command = (*evaluation, "--protocol", protocol)
            self._made(*command, "--out", place / f"run-{protocol}")
            going_on = ((*command, "--out", "IT", "--resume"), ("report", "IT", "--out", "OUT"))
            self.kinds[f"run {protocol}"] = Kind(place / f"run-{protocol}", going_on, is_run=True)
        self._made("bench", self.recipe, "--root", place, "--out", place / "results", "--workers", "1")
        looking = (("bench", str(self.recipe), "--root", str(place), "--out", "IT", "--status"),)
        looking += (("report", "IT", "--out", "OUT"),)
        self.kinds["results"] = Kind(place / "results", looking, is_run=True)
        if len(methods) > 2:
            self._trained()
        if "memit" in methods:
            self._made("stats", model, "--text", tiny.text_file(), "--layers", "1", "--max-tokens", 1024,
                       "--cache", place / "cache")  # fmt: skip
            self.kinds["cache"] = Kind(place / "cache", (("list", "statistics"), tuple(self.edit("memit", "OUT"))))

    def _trained(self) -> None:
        model, place = str(self.model), self.place
        self._made("train", "mend", model, "--data", self.teaching, "--out", place / "editor", *TRAINED)
        editing = ("edit", model, "--method", "mend", "--editor", "IT", "--edits", str(self.facts), "--out", "OUT")
        self.kinds["editor"] = Kind(place / "editor", (editing,))

    def files(self, kind: str) -> list[str]:
        """The files of something that can be damaged, relative to it; an empty name for a file by itself."""
        source = self.kinds[kind].source
        if source.is_file():
            return [""]
        found = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
        return [
            str(one) for one in found if one.suffix in (".json", ".jsonl", ".safetensors") and one.parts[0] != "base"
        ]


def words(command: tuple[Any, ...], it: Path, out: Path) -> list[str]:
    """A command with its places filled in."""
    return [{"IT": str(it), "OUT": str(out)}.get(one, one) for one in command]
