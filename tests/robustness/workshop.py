"""Everything that the command line reads and writes, made once of a tiny model; and the commands that read it again.

What is of our own making is here; `foreign` has models, tables, texts and answers, which others make.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
from robustness import foreign, listening, looking
from robustness.commands import Kind, Result, run, words

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
    "rome": (*KEYS, "-o", "history=true", "--state", "STATE"),
    "memit": KEYS,
    "alphaedit": (*KEYS, "--state", "STATE"),
    "emmet": (*KEYS, "-o", "history=true", "--state", "STATE"),
    "ultraedit": ("-o", "text=TEXT", "-o", "warm_up=128", "--state", "STATE"),
    "stableedit": ("-o", "text=TEXT", "-o", "warm_up=128", "--state", "STATE"),
    "grace": ("-o", "steps=2", "-o", "radius=0.5", "--state", "STATE"),
    "horen": ("-o", "steps=2", "--state", "STATE"),
    "wise": (*SIDE, "--state", "STATE"),
    "calinet": ("-o", "steps=2"),
    "t-patcher": ("-o", "text=TEXT", "-o", "memory.max_tokens=256", "-o", "memory.top=16", "-o", "max_steps=5",
                  "-o", "first_check=5", "--state", "STATE"),
    "subject-neurons": ("-o", "text=TEXT", "-o", "max_tokens=256", "-o", "layer=1", "-o", "others=4",
                        "-o", "contexts.given=[]", "-o", "targets.steps=2", "--state", "STATE"),
    "ike": ("-o", "corpus=CORPUS", "-o", "encoder=ngrams", "-o", "num_demonstrations=2"),
    "serac": ("-o", "editor=fresh", "-o", "self_contained=true"),
    "kn": (),
    "f-learning-lora-ft": ("-o", "forget_options.epochs=1", "-o", "learn_options.epochs=1"),
    "crispedit": ("-o", "text=TEXT", "-o", "epochs=1", "-o", "layers=[1]", "--state", "STATE"),
    "auto": ("-o", "ladder=[{method='ft', preset='none', options={epochs=2}}]", "-o", "num_neighbours=2"),
}  # fmt: skip
STATES = tuple(method for method, options in METHODS.items() if "STATE" in options)
TRAINED = ("-o", "steps=2", "-o", "examples_per_step=4", "-o", "validate_every=1", "-o", "layers=[1]", "-o", "rank=4")
EDITORS: dict[str, tuple[str, ...]] = {
    "mend": TRAINED,
    "ke": ("-o", "steps=2", "-o", "examples_per_step=4", "-o", "validate_every=1", "-o", "layers=[1]"),
    "serac": ("-o", "steps=2", "-o", "examples_per_step=4", "-o", "validate_every=1"),
}
DAMAGED = (".json", ".jsonl", ".safetensors", ".jinja", ".csv", ".txt", ".npz", ".parquet", ".gguf", ".undo")
"""Endings of the files of a folder that are damaged."""


class Workshop:
    """The folder of a campaign.

    Arguments:
        place: an empty folder.
        methods: whose patches are made.
        is_small: without what takes longest to make: runs, results, editors and most of `foreign`.
        only: the first words of the kinds that are wanted; all if left out.
    """

    def __init__(
        self,
        place: Path,
        methods: tuple[str, ...] = tuple(METHODS),
        *,
        is_small: bool = False,
        only: tuple[str, ...] = (),
    ) -> None:
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

        def is_wanted(*names: str) -> bool:
            return not only or any(name in only for name in names)

        for method in methods:
            uses = {
                "lora": ("adapter",),
                "ft": ("record", "folder", "request"),
                "memit": ("inspected", "candidates"),
                "grace": ("inspected",),
            }
            if is_wanted("patch", "state", *uses.get(method, ())):
                self._edit(method)
        self._files()
        if not is_small:
            makers: dict[tuple[str, ...], Callable[[], None]] = {
                ("run", "record", "judge", "endpoint", "answers"): self._runs,
                ("results",): self._results,
                ("folder",): lambda: self._folder(methods),
                ("editor", "checkpoint"): self._trained,
                ("cache",): self._cache,
            }
            for names, make in makers.items():
                if is_wanted(*names):
                    make()
            foreign.add(self, is_wanted)
            listening.add(self, is_wanted)
            looking.add(self, is_wanted)
        else:
            foreign.add(self, lambda *names: any(name in foreign.CHEAP for name in names))
        # safetensors writes for its owner only: whoever has no rights would stop at the model, not at what is damaged.
        for path in place.rglob("*"):
            path.chmod(path.stat().st_mode | 0o444)
        if only:
            self.kinds = {name: kind for name, kind in self.kinds.items() if name.split()[0] in only}

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

    def edit(self, method: str, out: object, state: Path | None = None, edits: object = None) -> list[str]:
        """The command that edits with a method."""
        given = ["edit", str(self.model), "--method", method, "--preset", "none", "--out", str(out)]
        given += ["--max-new-tokens", "4"]
        return [*given, "--edits", str(edits or self.facts), *self.arguments(method, state)]

    def evaluation(self, data: object, *more: object) -> tuple[str, ...]:
        """The command that measures fine-tuning on a file."""
        given = ("eval", self.model, "--dataset", data, "--method", "ft", "--preset", "none", "-o", "epochs=1")
        return tuple(map(str, (*given, "--max-new-tokens", 4, *more)))

    def made(self, *arguments: object) -> Result:
        """Runs a command whose output becomes a kind. An edit of a random model need not hold, which is a 1."""
        result = run(*arguments)
        assert result.code in (0, 1), (arguments, result.err)
        return result

    def _edit(self, method: str) -> None:
        patch, state = self.place / f"patch-{method}", self.place / f"state-{method}.safetensors"
        self.made(*self.edit(method, patch, state if method in STATES else None))
        model, prompt = str(self.model), "The capital of France is"
        reading = [("ask", model, prompt, "--patch", "IT"), ("verify", model, "IT", "--json")]
        reading += [("apply", model, "IT", "--out", "OUT", "--as", "patched"), ("push", "IT", "me/it", "--dry-run")]
        if method in ("ike", "serac"):
            reading.append(("memory", "list", "IT"))
            reading.append(("memory", "delete", "IT", "0", "--out", "OUT"))
        if method == "memit":
            reading.append(("apply", model, "IT", "--out", "OUT"))
            reading.append(("apply", model, "IT", "--out", "OUT", "--as", "peft"))
        if method == "f-learning-lora-ft":
            reading.append((*self.edit(method, "OUT"), "--forget-patch", "IT"))
        if method in ("ft", "grace"):
            reading.append((*self.edit("ft", "OUT"), "--patch", "IT"))
        self.kinds[f"patch {method}"] = Kind(patch, tuple(reading))
        if method in STATES:
            command = [*self.edit(method, "OUT"), "--state", "IT"]
            self.kinds[f"state {method}"] = Kind(state, (tuple(command),), is_changed=True)

    def _files(self) -> None:
        model, place = str(self.model), self.place
        self.kinds["recipe"] = Kind(self.recipe, (("bench", "IT", "--root", str(place), "--dry-run"),))
        self.kinds["edits"] = Kind(self.facts, (("edit", model, "--method", "ft", "--preset", "none", "-o", "epochs=1",
                                                 "--edits", "IT", "--out", "OUT"),
                                                ("assess", model, "--facts", "IT")))  # fmt: skip

    def _folder(self, methods: tuple[str, ...]) -> None:
        model, place = str(self.model), self.place
        self.made("apply", model, place / f"patch-{methods[0]}", "--as", "patched", "--out", place / "patched")
        reading = (("ask", "IT", "The capital of France is"), ("doctor", "IT"), ("push", "IT", "me/it", "--dry-run"))
        self.kinds["folder of patches"] = Kind(place / "patched", reading)

    def _runs(self) -> None:
        for protocol in ("single", "sequential"):
            command = self.evaluation(self.facts, "--protocol", protocol)
            run_folder = self.place / f"run-{protocol}"
            self.made(*command, "--out", run_folder)
            going_on = ((*command, "--out", "IT", "--resume"), ("report", "IT", "--out", "OUT"))
            self.kinds[f"run {protocol}"] = Kind(run_folder, going_on, is_changed=True)

    def _results(self) -> None:
        place = self.place
        self.made("bench", self.recipe, "--root", place, "--out", place / "results", "--workers", "1")
        looking = (("bench", str(self.recipe), "--root", str(place), "--out", "IT", "--status"),)
        looking += (("report", "IT", "--out", "OUT"),)
        self.kinds["results"] = Kind(place / "results", looking, is_changed=True)

    def _cache(self) -> None:
        """Second moments, a spectrum, own writing, contexts, and sums of a collection that was broken off."""
        from palimpsest.statistics import collecting, passes

        cache = self.place / "cache"
        collect = ("stats", str(self.model), "--layers", "1", "--text", tiny.text_file(), "--max-tokens")
        own = ["text=own" if one.startswith("text=") else one for one in self.edit("memit", "OUT")]
        own[own.index("contexts.given=[]")] = "contexts.starts=['The', 'I']"
        by_own = own, self.edit("memit", "OUT"), self.edit("alphaedit", "OUT")
        with mock.patch.dict(os.environ, {"PALIMPSEST_CACHE": str(cache)}):
            for number, command in enumerate(by_own):
                self.made(*words(tuple(command), self.place, self.place / f"for-cache-{number}"))
            at_once = mock.patch.object(collecting, "Checkpoints", lambda kept, _: passes.Checkpoints(kept, 0.0))
            with at_once:
                self._interrupted(passes.Checkpoints, "save_in_time", *collect, "2048", "--tolerance", "0")
        reading = (("list", "statistics"), *map(tuple, by_own), (*collect, "2048", "--tolerance", "0"))
        named = {"PALIMPSEST_CACHE": "IT"}
        self.kinds["cache"] = Kind(cache, reading, is_changed=True, environment=named)

    def _trained(self) -> None:
        from palimpsest.training import metatraining

        model, place = str(self.model), self.place
        for method, options in EDITORS.items():
            folder, training = place / f"editor-{method}", ("train", method, model, "--data", str(self.teaching))
            self.made(*training, "--out", folder, *options)
            editing = ("edit", model, "--method", method, "--editor", "IT", "--edits", str(self.facts), "--out", "OUT")
            self.kinds[f"editor {method}"] = Kind(folder, (editing,))
            self._interrupted(
                metatraining, "write_checkpoint", *training, "--out", str(place / method), *options[2:], "-o", "steps=4"
            )
            going_on = (*training, "--out", "OUT", *options[2:], "-o", "steps=4", "--resume")
            kept = place / f"{method}.checkpoint"
            self.kinds[f"checkpoint {method}"] = Kind(kept, (going_on,), is_changed=True, name="out.checkpoint")

    def _interrupted(self, owner: Any, name: str, *arguments: str) -> None:
        """Begins a command, which is interrupted after it has called a function for the second time."""
        calls, write = [], getattr(owner, name)

        def twice(*given: Any) -> None:
            write(*given)
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)

        with mock.patch.object(owner, name, twice):
            # A shell starts what it puts into the background with interrupts ignored.
            former = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                assert run(*arguments).code == 130
            finally:
                signal.signal(signal.SIGINT, former)

    def groups(self) -> list[str]:
        """The first words of the kinds: what is one sort of file, however many methods or families there are of it."""
        return sorted({name.split()[0] for name in self.kinds})

    def files(self, kind: str) -> list[str]:
        """The files of something that can be damaged, relative to it; an empty name for a file by itself."""
        source = self.kinds[kind].source
        if source is None or source.is_file():
            return [""]
        found = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
        return [str(one) for one in found if one.suffix in DAMAGED and one.parts[0] != "base"]
