"""Commands killed at random moments, then run again: nothing half-written, nothing done twice, the same result.

    python tests/robustness/kills.py --seed 7 --kills 100

A command runs in a forked process. Half of the kills come after a random time, half at a random file that is opened,
renamed or removed in the command's own places, which is where something could be left half-written. With
`--interrupt` the same is done with the signal of Ctrl-C, and the command has to end by itself, cleanly.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from palimpsest import TrainedEditor, load_patch
from palimpsest.cli import main
from palimpsest.evaluation import load_run
from palimpsest.files import read_tensors
from palimpsest.methods.outcomes import settle_state
from robustness.commands import run
from robustness.damage import copied
from robustness.workshop import EDITORS, TRAINED, Workshop

# Times and memory differ from run to run; when a run was made is no result either.
UNSTABLE = {"seconds", "seconds_per_edit", "peak_memory_bytes", "specification"}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
ERRORS = "errors.txt"
FAILED, INTERRUPTED = 251, 252
Look = Callable[[Path], Any]


@dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Arguments:
        command: with `OUT` and `STATE` for its places.
        again: what is added to go on.
        result: what it made, to be compared; raises for what is not whole.
        state: the state that it starts from.
    """

    command: tuple[str, ...]
    again: tuple[str, ...]
    result: Look
    state: Path | None = None

    def words(self, place: Path) -> list[str]:
        """The command for a place."""
        named = {"OUT": str(place / "out"), "STATE": str(place / "state.safetensors")}
        return [named.get(one, one) for one in self.command]

    def ready(self, place: Path) -> None:
        """Makes an empty place, with the state in it."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if self.state is not None:
            copied(self.state, place / "state.safetensors")


def child(words: list[str], place: Path, at_event: int | None, signal_number: int = signal.SIGKILL) -> int:
    """Starts a command in a forked process, which sends itself a signal at the file event of that number."""
    number = os.fork()
    if number:
        return number
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(os.open(place.parent / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    # A shell starts what it puts into the background with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = 0

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(
            isinstance(one, str | os.PathLike) and str(one).startswith(str(place)) for one in given
        ):
            seen += 1
            if seen == at_event:
                os.kill(os.getpid(), signal_number)

    sys.addaudithook(hook)
    code = main(words)
    # More than 250 events would not fit into an exit code, and none of the commands has that many.
    os._exit(min(250, seen) if code in (0, 1) else INTERRUPTED if code == 130 else FAILED)


def patch(place: Path) -> Any:
    """A patch's tensors, and the state's."""
    found = {"patch": {name: part for name, part in load_patch(place / "out").tensors().items()}}
    state = place / "state.safetensors"
    if state.exists():
        settle_state(state)
        found["state"] = read_tensors(state).tensors
    return found


def record(place: Path) -> Any:
    """A run's record."""
    return load_run(place / "out").model_dump(mode="json", exclude=UNSTABLE)


def editor(place: Path) -> Any:
    """An editor's tensors."""
    return dict(TrainedEditor.load(place / "out").tensors)


def results(place: Path) -> Any:
    """The records of a recipe's units."""
    units = sorted((place / "out" / "units").iterdir())
    return {unit.name: load_run(unit).model_dump(mode="json", exclude=UNSTABLE) for unit in units}


def is_same(first: Any, second: Any) -> bool:
    """Whether two results are equal, tensors bit for bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_same(one, second[name]) for name, one in first.items())
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def victims(shop: Workshop) -> dict[str, Victim]:
    """What is killed, by name."""
    model, facts = str(shop.model), str(shop.facts)
    evaluation = shop.evaluation(facts, "--out", "OUT")
    training = ("train", "mend", model, "--data", str(shop.teaching), "--out", "OUT", *TRAINED[2:], "-o", "steps=6")
    serac = (
        "train",
        "serac",
        model,
        "--data",
        str(shop.teaching),
        "--out",
        "OUT",
        *EDITORS["serac"][2:],
        "-o",
        "steps=4",
    )
    found = {
        "edit ft": Victim(tuple(shop.edit("ft", "OUT")), (), patch),
        "edit memit": Victim(tuple(shop.edit("memit", "OUT")), (), patch),
        "edit alphaedit": Victim(
            (*shop.edit("alphaedit", "OUT"), "--state", "STATE"), (), patch, shop.place / "state-alphaedit.safetensors"
        ),
        "edit auto": Victim(tuple(shop.edit("auto", "OUT")), (), patch),
        "eval single": Victim((*evaluation, "--protocol", "single"), ("--resume",), record),
        "eval sequential": Victim((*evaluation, "--protocol", "sequential"), ("--resume",), record),
        "train mend": Victim(training, ("--resume",), editor),
        "train serac": Victim(serac, ("--resume",), editor),
        "bench": Victim(
            ("bench", str(shop.recipe), "--root", str(shop.place), "--out", "OUT", "--workers", "1"),
            ("--resume",),
            results,
        ),
    }
    return found


def killed(
    victim: Victim,
    place: Path,
    expected: Any,
    rng: random.Random,
    seconds: float,
    events: int,
    *,
    signal_number: int = signal.SIGKILL,
) -> str | None:
    """Kills or interrupts a command once and runs it again; returns what is wrong."""
    victim.ready(place)
    at_event = rng.randint(1, max(1, events)) if rng.random() < 0.5 else None
    number = child(victim.words(place), place, at_event, signal_number)
    if at_event is None:
        time.sleep(rng.random() * seconds)
        os.kill(number, signal_number)
    _, status = os.waitpid(number, 0)
    when = f"at file event {at_event}" if at_event else "after a random time"
    if signal_number == signal.SIGINT and (found := rudely(os.waitstatus_to_exitcode(status), place)):
        return f"interrupted {when}: {found}"
    out, state = place / "out", place / "state.safetensors"
    is_folder_of_its_own = victim.result in (patch, editor)
    if is_folder_of_its_own and out.exists():
        # It appears complete or not at all; then the state has to be there as well.
        return (
            None if is_same(victim.result(place), expected) else f"a patch that differs, or without its state, {when}"
        )
    if victim.state is not None:
        settle_state(state)
        if not is_same(read_tensors(state).tensors, read_tensors(victim.state).tensors):
            return f"a state without its patch, {when}"
    again = run(*victim.words(place), *victim.again)
    if again.code not in (0, 1):
        return f"{when}; run again: {again.code} {again.err[-600:]}"
    left = [path.name for path in place.iterdir() if path.name.startswith(".") or path.name.endswith(".checkpoint")]
    if left:
        return f"left behind {when}: {left}"
    return None if is_same(victim.result(place), expected) else f"another result {when}"


def rudely(code: int, place: Path) -> str | None:
    """What is wrong with how an interrupted command ended: an exit code, a traceback, or something half-written."""
    said = (place.parent / ERRORS).read_text()
    if code == FAILED or code < 0:
        return f"ended with {code}: {said[-600:]}"
    if "Traceback" in said:
        return said[-1_500:]
    left = [path.name for path in place.iterdir() if "-draft-" in path.name]
    return f"left behind {left}" if left else None


def campaign(
    shop: Workshop, seed: int, kills: int, names: list[str], signal_number: int = signal.SIGKILL
) -> tuple[Counter, list[str]]:
    """Kills each command in turn; returns counts and what went wrong."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    wrong = []
    known = {}
    place = shop.place / "killed"
    for number in range(kills):
        name = names[number % len(names)]
        victim = victims(shop)[name]
        if name not in known:
            victim.ready(place)
            start = time.perf_counter()
            _, status = os.waitpid(child(victim.words(place), place, None), 0)
            events = os.waitstatus_to_exitcode(status)
            assert events < FAILED, f"{name} fails without being killed"
            known[name] = victim.result(place), time.perf_counter() - start, events
        rng = random.Random(f"{seed}|{number}")
        found = killed(victim, place, known[name][0], rng, *known[name][1:], signal_number=signal_number)
        counts[name] += 1
        if found is not None:
            wrong.append(f"kill {number}, {name}: {found}")
            print(wrong[-1], flush=True)
    return counts, wrong


def command_line() -> int:
    """The campaign by itself."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", help="a part of a command's name")
    parser.add_argument("--interrupt", action="store_true", help="send an interrupt, as Ctrl-C does, instead of a kill")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        os.environ["PALIMPSEST_CACHE"] = str(Path(place) / "cache")
        shop = Workshop(Path(place), ("memit", "alphaedit"), only=("patch", "state"))
        names = [name for name in victims(shop) if (given.only or "") in name]
        counts, wrong = campaign(
            shop, given.seed, given.kills, names, signal.SIGINT if given.interrupt else signal.SIGKILL
        )
    for name, number in counts.items():
        print(f"{name:<18}{number:>5}")
    what = "interrupts" if given.interrupt else "kills"
    print(
        f"{sum(counts.values())} {what} of seed {given.seed}, {len(wrong)} wrong, {time.perf_counter() - start:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command_line())
