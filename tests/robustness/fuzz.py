"""The campaign: damaged files of every kind, and what the command line makes of them.

    python tests/robustness/fuzz.py --seed 7 --cases 1000
    python tests/robustness/fuzz.py --seed 7 --cases 500 --only patch model gguf

Every case damages one file of a fresh copy, or a command's own words, and runs what reads it. Wrong is: a traceback, an
exit code that is not 0, 1 or 2, an error that is not one block, an output beside an error, a draft left behind, a model
folder or anything else that was only read and has changed, code of a folder that ran, a pickle that was opened, a
program that was started, the network, and a command that does not end. What goes wrong is reduced to its fewest damages
and kept in `found.jsonl`, which the tests do again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # Read when the library is imported: nothing here asks the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"

from chat_server import sends, serving
from robustness.commands import Kind, Result, run, words
from robustness.damage import TEXTS, Damage, copied, do, draw
from robustness.guard import Guard, TookTooLongError, unblocking, without_rights
from robustness.places import SPECIAL, untangle
from robustness.workshop import Workshop

FOUND = Path(__file__).with_name("found.jsonl")
Case = dict[str, Any]
DONE_TO_WORDS = ("drop", "twice", "swap", "odd", "value", "more", "cut")
WORDS = (
    *TEXTS, "-1", "0", "1", "2", "1.5", "1e9", "nan", "inf", "true", "world", ".", "/", "~", "..", "/dev/null",
    "/proc", "--json", "--help", "-o", "--resume", "--overwrite", "x=1", "=", "a.b.c=1", "layers=[99]",
    "layers=[]", "layers=x", "seed=1", "learning_rate=nan", "learning_rate=-1", "learning_rate=1e30",
    "epochs=0", "epochs=-1", "epochs=x", "batch_size=0", "rank=0", "rank=1.5", "steps={}", "steps=0",
    "text=/nowhere", "text=", "contexts.given=5", "statistics.max_tokens=0", "targets.steps=-1", "layers=['x']",
    "parameters=nothing", "radius=-1", "1-", "-", "1,2", "5-1", "99", "auto", "none", "cuda", "cuda:7", "mps",
    "meta", "float99", "bfloat16", "batch", "generate",
)  # fmt: skip
"""What stands instead of a word."""


class Campaign:
    """A workshop and what watches over it."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.guard = Guard(shop.place)
        self.model = fingerprint(shop.model)

    def drawn(self, seed: int, number: int, *, in_turn: bool = False) -> Case:
        """The case of a number: what is damaged, how, and which of its commands reads it.

        Arguments:
            in_turn: groups of kinds take turns; else each is as likely as any other, files of edits four times so.
        """
        shop, rng = self.shop, random.Random(f"{seed}|{number}")
        names, groups = sorted(shop.kinds), shop.groups()
        group = rng.choice([*groups, *["edits"] * (3 if "edits" in groups else 0)])
        if in_turn:
            group = groups[number % len(groups)]
        name = rng.choice([one for one in names if one.split()[0] == group])
        kind = shop.kinds[name]
        at = rng.randrange(len(kind.commands))
        if kind.source is None:
            damages = [_for_words(kind.commands[at], rng) for _ in range(rng.choice((1, 1, 2, 3)))]
            return {"kind": name, "file": "", "damages": damages, "command": at}
        file = rng.choice(shop.files(name))
        whole = kind.source / file if file else kind.source
        damages = []
        scratch = shop.place / "scratch" / (whole.name or "file")
        scratch.parent.mkdir(exist_ok=True)
        copied(whole, scratch)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            try:
                damage = draw(scratch, rng)
                if damage[0] == "bytes" and damage[1] in SPECIAL:
                    # Nothing more can be done to what must not be opened, and nothing of the kind to what is gone.
                    if scratch.is_file():
                        damages.append(damage)
                    break
                do(damage, scratch)
            except Exception:
                # It is so broken already that there is no place in it for more.
                break
            damages.append(damage)
        return {"kind": name, "file": file, "damages": damages, "command": at}

    def problem(self, case: Case) -> tuple[str | None, str]:
        """What is wrong with how a case went, if anything; and how it went."""
        kind, shop = self.shop.kinds[case["kind"]], self.shop
        place = shop.place / "case"
        if place.exists():
            untangle(place)
            shutil.rmtree(place)
        place.mkdir()
        it, command = self._damaged(kind, case, place)
        before = None if kind.is_changed or kind.source is None else fingerprint(it)
        named = {"PALIMPSEST_CACHE": str(shop.place / "cache-of-others"), **kind.environment}
        named = {name: value.replace("IT", str(it)) for name, value in named.items()}
        with ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, named))
            if "URL" in command:
                body = _answered(it)
                status = random.Random(len(body)).choice((200, 200, 200, 200, 404, 429, 500, 204, 301))
                server = stack.enter_context(serving(sends(body, status)))
                command = tuple(server.url if one == "URL" else one for one in command)
            # Last: a process without rights cannot read modules of its own that are imported when first used.
            if any(damage[:2] == ["bytes", "denied"] for damage in case["damages"]):
                stack.enter_context(without_rights(place))
            waited = stack.enter_context(unblocking(place))
            try:
                with self.guard.watching():
                    result = (kind.reader or run)(*words(command, it, place / "out"))
            except (Exception, TookTooLongError, SystemExit) as error:
                return f"{type(error).__name__} left main: {error}", "left main"
        if result.code in (130, 143):
            raise KeyboardInterrupt
        how = {0: "done", 1: "failed test", 2: "refused"}.get(result.code, "odd code")
        if waited:
            return f"waited at a named pipe: {waited[0].name}", how
        if self.guard.seen:
            return f"did what it must not: {self.guard.seen[:3]}", how
        found = self._told(result, place) or self._left(place)
        if found is None and before is not None and fingerprint(it) != before:
            found = "what was only read has changed"
        return found, "traceback" if found and "Traceback" in found else how

    def _damaged(self, kind: Kind, case: Case, place: Path) -> tuple[Path, tuple[Any, ...]]:
        """Where the damaged copy is, and the command that reads it."""
        command = kind.commands[case["command"]]
        if kind.source is None:
            for damage in case["damages"]:
                command = _changed(command, *damage)
            return place / "it", command
        it = copied(kind.source, place / (kind.name or f"it{kind.source.suffix}"))
        file = it / case["file"] if case["file"] else it
        for damage in case["damages"]:
            do(damage, file)
        return it, command

    def _told(self, result: Result, place: Path) -> str | None:
        """What is wrong with what a command said."""
        if "Traceback" in result.err or "should not have happened" in result.err:
            return f"Traceback {result.err.strip()[-1500:]}"
        if result.code not in (0, 1, 2):
            return f"exit code {result.code}: {result.err[-300:]}"
        if result.code != 2:
            return None
        # The second is how typer shows what is wrong with the words themselves.
        blocks = sum(line.startswith(("Error: ", "\u256d\u2500 Error ")) for line in result.err.splitlines())
        # A command without any words shows its help.
        if blocks != 1 and "The run failed" not in result.err and "Usage: " not in result.out:
            return f"not one block: {result.err[-600:]}"
        written = (path for path in place.glob("out*") if path.suffix != ".checkpoint")
        if any(written) and not any(word in result.err for word in ("printed", "--resume")):
            return f"an output beside an error: {result.err[-300:]}"
        return None

    def _left(self, place: Path) -> str | None:
        """What is wrong with what a command left behind."""
        left = [path.name for path in place.iterdir() if path.name.startswith(".") and path.suffix != ".pending"]
        if left:
            return f"left behind: {left}"
        return "the model folder has changed" if fingerprint(self.shop.model) != self.model else None

    def smallest(self, case: Case) -> Case:
        """The case with as few of its damages as go wrong."""
        for index in reversed(range(len(case["damages"]))):
            fewer = {**case, "damages": case["damages"][:index] + case["damages"][index + 1 :]}
            try:
                if fewer["damages"] and self.problem(fewer)[0] is not None:
                    case = fewer
            except Exception:
                # Without the one before, there is nothing that this damage could be done to.
                continue
        return case

    def run(
        self, seed: int, cases: int, *, first: int = 0, in_turn: bool = False, keep: Path | None = None
    ) -> tuple[Counter, list]:
        """Runs cases; returns counts by kind and outcome, and what went wrong."""
        counts: Counter[tuple[str, str]] = Counter()
        wrong = []
        for number in range(first, first + cases):
            case = self.drawn(seed, number, in_turn=in_turn)
            started = time.perf_counter()
            found, how = self.problem(case)
            seconds = time.perf_counter() - started
            counts[case["kind"].split()[0], how if found is None else "WRONG"] += 1
            if seconds > 20:
                print(f"case {number} took {seconds:.0f} s: {json.dumps(case)[:300]}", flush=True)
            if found is not None:
                case = self.smallest(case)
                wrong.append((number, case, found))
                print(f"\ncase {number}: {json.dumps(case)[:900]}\n{found}\n", flush=True)
                if keep is not None:
                    with keep.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(case) + "\n")
            if number % 500 == 499:
                print(f"{number + 1} cases, {len(wrong)} wrong so far\n{table(counts)}", flush=True)
        return counts, wrong


def fingerprint(place: Path) -> str:
    """A digest of everything at a place; special files and links are named, and not opened."""
    digest = hashlib.sha256()
    for path in [place, *sorted(place.rglob("*"))] if place.is_dir() and not place.is_symlink() else [place]:
        mode = path.lstat().st_mode if os.path.lexists(path) else 0
        digest.update(f"{path.relative_to(place)}|{stat.S_IFMT(mode)}|".encode())
        if stat.S_ISREG(mode):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _answered(file: Path) -> bytes:
    """What an endpoint answers where a file is damaged: its bytes, nothing where there are none to be read."""
    try:
        return file.read_bytes() if file.is_file() else b""
    except PermissionError:
        return b""


def _for_words(command: tuple[Any, ...], rng: random.Random) -> Damage:
    """A damage to a command's words; its name stays, and so does where it writes."""
    return [rng.choice(DONE_TO_WORDS), rng.randrange(1, 50), rng.choice(WORDS)]


def _changed(command: tuple[Any, ...], what: str, at: int, odd: str) -> tuple[Any, ...]:
    words = list(command)
    places = [index for index in range(1, len(words)) if "OUT" not in (words[index], words[index - 1])]
    if not places:
        return command
    index = places[at % len(places)]
    if what == "drop":
        del words[index]
    elif what == "twice":
        words.insert(index, words[index])
    elif what == "swap":
        other = places[(at + 1) % len(places)]
        words[index], words[other] = words[other], words[index]
    elif what == "more":
        words.insert(index, odd)
    elif what == "cut":
        words[index] = words[index][:-1]
    elif what == "value" and "=" in words[index]:
        words[index] = words[index].partition("=")[0] + "=" + odd
    else:
        words[index] = odd
    # No program can be given a NUL, and no word of more than 128 KiB.
    return tuple(word.replace("\0", "")[:100_000] for word in words)


def kept() -> Iterator[Case]:
    """The cases that went wrong once."""
    for line in FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else ():
        yield json.loads(line)


def table(counts: Counter) -> str:
    """Counts by what was damaged and what came of it."""
    hows = sorted({how for _, how in counts})
    lines = [f"{'what':<12}" + "".join(f"{how:>14}" for how in hows)]
    for kind in sorted({kind for kind, _ in counts}):
        lines.append(f"{kind:<12}" + "".join(f"{counts[kind, how]:>14}" for how in hows))
    return "\n".join(lines)


def main() -> int:
    """The command line of the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--each", type=int, help="cases of every group of kinds, in place of --cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", nargs="*", default=(), help="the first words of the kinds that are damaged")
    parser.add_argument("--keep", action="store_true", help=f"add what goes wrong to {FOUND.name}")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, mock.patch.dict(os.environ, surroundings(Path(place))):
        shop = Workshop(Path(place), only=tuple(given.only))
        print(f"workshop of {len(shop.kinds)} kinds after {time.perf_counter() - start:.0f} s", flush=True)
        campaign = Campaign(shop)
        cases = given.each * len(shop.groups()) if given.each else given.cases
        keep = FOUND if given.keep else None
        counts, wrong = campaign.run(given.seed, cases, first=given.first, in_turn=bool(given.each), keep=keep)
        untangle(Path(place))
    print(table(counts))
    print(f"{cases} cases of seed {given.seed}, {len(wrong)} wrong, {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


def surroundings(place: Path) -> dict[str, str]:
    """The environment of a campaign: nothing of this user's is read, and the hub is not asked."""
    return {"PALIMPSEST_CACHE": str(place / "cache"), "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
