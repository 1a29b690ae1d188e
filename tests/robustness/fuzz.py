"""The campaign: damaged files of every kind of ours, and what the command line makes of them.

    python tests/robustness/fuzz.py --seed 7 --cases 1000

Every case damages one file of a fresh copy and runs what reads it. Wrong is: a traceback, an exit code that is not 0, 1
or 2, an error that is not one block, an output beside an error, a draft left behind, a model folder that has changed.
What goes wrong is reduced to its fewest damages and kept in `found.jsonl`, which the tests do again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from palimpsest.provenance import content_digest
from robustness.damage import Damage, copied, do, draw
from robustness.workshop import Workshop, run, words

FOUND = Path(__file__).with_name("found.jsonl")
Case = dict[str, Any]


def drawn(shop: Workshop, seed: int, number: int) -> Case:
    """The case of a number: what is damaged, how, and which of its commands reads it."""
    rng = random.Random(f"{seed}|{number}")
    kind = rng.choice(["edits"] * 4 + sorted(shop.kinds))
    file = rng.choice(shop.files(kind))
    whole = shop.kinds[kind].source / file if file else shop.kinds[kind].source
    damages: list[Damage] = []
    scratch = shop.place / "scratch" / (whole.name or "file")
    scratch.parent.mkdir(exist_ok=True)
    copied(whole, scratch)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            damage = draw(scratch, rng)
            do(damage, scratch)
        except Exception:
            # It is so broken already that there is no place in it for more.
            break
        damages.append(damage)
    return {"kind": kind, "file": file, "damages": damages, "command": rng.randrange(len(shop.kinds[kind].commands))}


def problem(shop: Workshop, case: Case) -> tuple[str | None, str]:
    """What is wrong with how a case went, if anything; and how it went."""
    kind = shop.kinds[case["kind"]]
    place = shop.place / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    it = copied(kind.source, place / f"it{kind.source.suffix}")
    file = it / case["file"] if case["file"] else it
    os.environ["PALIMPSEST_CACHE"] = str(it if case["kind"] == "cache" else shop.place / "cache")
    for damage in case["damages"]:
        do(damage, file)
    before = content_digest(shop.model)
    try:
        result = run(*words(kind.commands[case["command"]], it, place / "out"))
    except BaseException as error:
        return f"{type(error).__name__} left main: {error}", "left main"
    how = {0: "done", 1: "failed test", 2: "refused"}.get(result.code, "odd code")
    left = [path.name for path in place.iterdir() if path.name.startswith(".") and not path.name.endswith(".pending")]
    if "Traceback" in result.err or "should not have happened" in result.err:
        return result.err.strip()[-1500:], "traceback"
    if result.code not in (0, 1, 2):
        return f"exit code {result.code}: {result.err[-300:]}", how
    if (
        result.code == 2
        and sum(line.startswith("Error: ") for line in result.err.splitlines()) != 1
        and "The run failed" not in result.err
    ):
        return f"not one block: {result.err[-600:]}", how
    if result.code == 2 and (place / "out").exists():
        return f"an output beside an error: {result.err[-300:]}", how
    if left:
        return f"left behind: {left}", how
    if content_digest(shop.model) != before:
        return "the model folder has changed", how
    return None, how


def smallest(shop: Workshop, case: Case) -> Case:
    """The case with as few of its damages as go wrong."""
    for index in reversed(range(len(case["damages"]))):
        fewer = {**case, "damages": case["damages"][:index] + case["damages"][index + 1 :]}
        try:
            if fewer["damages"] and problem(shop, fewer)[0] is not None:
                case = fewer
        except Exception:
            # Without the one before, there is nothing that this damage could be done to.
            continue
    return case


def kept() -> Iterator[Case]:
    """The cases that went wrong once."""
    for line in FOUND.read_text(encoding="utf-8").splitlines() if FOUND.exists() else ():
        yield json.loads(line)


def campaign(
    shop: Workshop, seed: int, cases: int, *, first: int = 0, keep: Path | None = None
) -> tuple[Counter, list]:
    """Runs cases; returns counts by kind and outcome, and what went wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number in range(first, first + cases):
        case = drawn(shop, seed, number)
        found, how = problem(shop, case)
        counts[case["kind"].split()[0], how if found is None else "WRONG"] += 1
        if found is not None:
            case = smallest(shop, case)
            wrong.append((number, case, found))
            print(f"\ncase {number}: {json.dumps(case)[:600]}\n{found}\n", flush=True)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(case) + "\n")
        elif number % 100 == 99:
            print(f"{number + 1} cases, {len(wrong)} wrong", flush=True)
    return counts, wrong


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
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", action="store_true", help=f"add what goes wrong to {FOUND.name}")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        os.environ["PALIMPSEST_CACHE"] = str(Path(place) / "cache")
        shop = Workshop(Path(place))
        print(f"workshop after {time.perf_counter() - start:.0f} s", flush=True)
        counts, wrong = campaign(shop, given.seed, given.cases, first=given.first, keep=FOUND if given.keep else None)
    print(table(counts))
    print(f"{given.cases} cases of seed {given.seed}, {len(wrong)} wrong, {time.perf_counter() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
