"""What the EasyEdit survey found (arXiv:2305.13172), and how each finding is judged here."""

from __future__ import annotations

from blocks import recipe
from judging import (
    NOT_HERE,
    Missing,
    Verdict,
    batch,
    known,
    score,
    sequence,
    single,
    triple,
    units,
    verdict,
)

T5 = "world-t5"


def locating_leads() -> Verdict:
    found = {name: single(name) for name in ("rome", "memit", "ft")}
    held = [
        min(score(found[name], metric) for metric in ("reliability", "locality")) >= 90 for name in ("rome", "memit")
    ]
    return verdict(*held), "; ".join(f"`{name}` {triple(row)}" for name, row in found.items())


def tuning_a_layer_is_not_local() -> Verdict:
    tuned, others = single("ft-l"), [single(name) for name in ("rome", "memit")]
    worst = min(score(row, "locality") for row in others)
    figures = f"`ft-l` {triple(tuned)}; ROME and MEMIT keep {worst:.0f} or more"
    return verdict(score(tuned, "locality") < worst - 5), figures


def serac_is_good_at_all() -> Verdict:
    row = single("serac")
    return verdict(*(score(row, metric) >= 90 for metric in ("reliability", "generality", "locality"))), triple(row)


def mend_is_local() -> Verdict:
    row = single("mend")
    return verdict(score(row, "locality") >= 85, score(row, "reliability") >= 70), triple(row)


def mend_likes_encoder_decoders() -> Verdict:
    found = {model: single("mend", model) for model in (T5, "world")}
    held = score(found[T5], "reliability") > score(found["world"], "reliability") + 5
    return verdict(held), "; ".join(f"`{model}` {triple(row)}" for model, row in found.items())


def ke_is_weak() -> Verdict:
    found = known(("world", T5), lambda model: single("ke", model))
    held = [score(row, "reliability") < 50 for row in found.values()]
    return verdict(*held), "; ".join(f"`{model}` {triple(row)}" for model, row in found.items())


def kn_is_weak() -> Verdict:
    row = single("kn")
    return verdict(score(row, "reliability") < 60 or score(row, "locality") < 60), triple(row)


def ike_is_not_local() -> Verdict:
    # A model that has not learned to use its context says nothing of a method that only gives it one.
    return NOT_HERE, f"the bundled models were never taught to use a context: {triple(single('ike'))}"


def calinet_is_weak() -> Verdict:
    row, how = (
        units("added-parameters.tables", method="calinet", model="world")[0],
        "in one batch, which it is made for",
    )
    return verdict(score(row, "reliability") < 60), f"{triple(row)}, {row['num_edits']} facts {how}"


def t_patcher_works_on_decoders() -> Verdict:
    row = single("t-patcher")
    return verdict(score(row, "reliability") >= 90, score(row, "generality") >= 80), triple(row)


def t_patcher_does_not_generalise_on_t5() -> Verdict:
    row = single("t-patcher", T5)
    held = score(row, "reliability") >= 80, score(row, "generality") < 50, score(row, "locality") >= 80
    return verdict(*held), triple(row)


def locating_carries_over() -> Verdict:
    leaders = {name: score(single(name), "portability") for name in ("rome", "memit")}
    rest = known(("serac", "ke", "kn", "mend", "calinet"), single)
    others = {name: score(row, "portability") for name, row in rest.items()}
    figures = ", ".join(f"`{name}` {value:.0f}" for name, value in {**leaders, **others}.items())
    held = [min(leaders.values()) > value + 5 for value in others.values()]
    return verdict(*held), f"one hop follows: {figures}"


def half_of_the_consequences_are_lost() -> Verdict:
    found = {name: score(single(name), "portability") for name in ("rome", "memit")}
    figures = ", ".join(f"`{name}` {value:.0f}" for name, value in found.items())
    return verdict(*(value <= 60 for value in found.values())), f"one hop follows: {figures}"


FIGURE_4 = ("ft", "ft-l", "rome", "memit", "mend", "kn", "serac", "ike")


def other_attributes_stay() -> Verdict:
    found = {name: score(row, "locality.other_relation") for name, row in known(FIGURE_4, single).items()}
    figures = ", ".join(f"`{name}` {value:.0f}" for name, value in found.items())
    return verdict(*(value >= 80 for value in found.values())), f"same subject kept: {figures}"


def neighbours_are_pulled_by_the_edit() -> Verdict:
    found = known((name for name in FIGURE_4 if name != "ike"), single)
    pairs = {name: (score(row, "locality.distracting"), score(row, "locality")) for name, row in found.items()}
    figures = ", ".join(f"`{name}` {near:.0f} / {whole:.0f}" for name, (near, whole) in pairs.items())
    held = [near < whole - 5 for near, whole in pairs.values()]
    return verdict(*held), f"kept with the edit in front / all kinds: {figures}"


def other_tasks_suffer_by_weights() -> Verdict:
    found = known(("ft", "ft-l", "mend", "kn", "memit", "serac", "grace"), single)
    kept = {name: score(row, "locality.out_of_scope") for name, row in found.items()}
    figures = ", ".join(f"`{name}` {value:.0f}" for name, value in kept.items())
    spared = [kept[name] >= 99 for name in ("memit", "serac", "grace") if name in kept]
    changed = [kept[name] < 95 for name in ("ft", "ft-l", "mend", "kn") if name in kept]
    return verdict(*spared, *changed), f"unrelated questions kept, in place of other tasks: {figures}"


def mend_is_fastest() -> Verdict:
    names = ("mend", "ke", "serac", "ft", "rome", "memit", "kn", "t-patcher", "calinet")
    seconds = {name: row["seconds_per_edit"] for name, row in known(names, single).items()}
    figures = ", ".join(f"`{name}` {1000 * value:.0f} ms" for name, value in seconds.items())
    return verdict(seconds["mend"] == min(seconds.values())), figures


def t_patcher_is_slowest() -> Verdict:
    seconds = single("t-patcher")["seconds_per_edit"]
    others = {
        name: row["seconds_per_edit"] for name, row in known(("rome", "memit", "kn", "ft", "mend"), single).items()
    }
    slowest = max(others, key=lambda name: others[name])
    figures = f"`t-patcher` {seconds:.1f} s; the slowest other, `{slowest}`, {others[slowest]:.1f} s"
    return verdict(seconds > others[slowest]), figures


def serac_trains_longer_than_mend() -> Verdict:
    minutes = {
        name: recipe("trained-editors.tables")["training"]["world"][name]["seconds"] / 60 for name in ("mend", "serac")
    }
    figures = ", ".join(f"`{name}` {value:.0f} minutes" for name, value in minutes.items())
    return verdict(minutes["serac"] > 1.5 * minutes["mend"]), figures


def memory_by_method() -> Verdict:
    found = {
        row["method"]: row["peak_memory_bytes"] / 1e6
        for row in units("trained-editors.tables", model="world", protocol="single")
        if row.get("peak_memory_bytes")
    }
    figures = ", ".join(f"`{name}` {value:.0f} MB" for name, value in found.items())
    return NOT_HERE, f"the process outweighs models this small: {figures}"


def memit_holds_in_batches() -> Verdict:
    alone, many = batch("memit", 1), batch("memit", 100)
    figures = f"1 fact {triple(alone)}; 100 facts {triple(many)}"
    try:
        thousand = units("many-edits.real", method="memit", protocol="batch of 1000")[0]
        figures += f"; 1,000 of CounterFact's {triple(thousand)}"
    except Missing:
        pass
    return verdict(score(many, "reliability") >= score(alone, "reliability") - 5), figures


def others_fall_in_batches() -> Verdict:
    figures, held = [], []
    for name in known(("ft", "mend"), lambda name: batch(name, 100)):
        alone, many = batch(name, 1) if name == "ft" else single(name), batch(name, 100)
        held.append(any(score(many, metric) < score(alone, metric) - 20 for metric in ("reliability", "locality")))
        figures.append(f"`{name}` {triple(alone)} to {triple(many)}")
    return verdict(*held), "; ".join(figures)


def serac_holds_batches() -> Verdict:
    alone, many = single("serac"), batch("serac", 100)
    held = score(many, "reliability") >= score(alone, "reliability") - 10
    return verdict(held), f"{triple(alone)} to {triple(many)}"


def memories_hold_in_sequence() -> Verdict:
    figures, held = [], []
    for name in ("serac", "t-patcher"):
        try:
            points = sequence(name)
        except Missing:
            continue
        last = points[max(points)]
        held.append(score(last, "reliability") >= 85)
        figures.append(f"`{name}` {triple(last)} after {max(points):,}")
    if not held:
        raise Missing
    return verdict(*held), "; ".join(figures)


def _long_sequence(method: str) -> dict[int, dict[str, object]]:
    points = units("many-edits.real", method=method, protocol="sequential")[0]["checkpoints"]
    return {point["num_edits"]: point for point in points}


def rome_falls_in_sequence() -> Verdict:
    points = sequence("rome")
    held = score(points[10], "reliability") >= 90, score(points[100], "reliability") < 80
    figures = "; ".join(f"{number}: {triple(points[number])}" for number in (10, 100))
    try:
        long = _long_sequence("rome")
        figures += "; on CounterFact's facts " + ", ".join(f"{n:,}: {triple(long[n])}" for n in (100, 300, 1000))
    except Missing:
        pass
    return verdict(*held), figures


def memit_falls_less_than_rome() -> Verdict:
    memit, rome = _long_sequence("memit"), _long_sequence("rome")
    falls = score(memit[1000], "reliability") < score(memit[100], "reliability") - 10
    less = score(memit[1000], "reliability") > score(rome[1000], "reliability") + 5
    figures = "; ".join(
        f"`{name}` {', '.join(f'{n:,}: {triple(points[n])}' for n in (100, 1000))}"
        for name, points in (("memit", memit), ("rome", rome))
    )
    return verdict(falls, less), f"CounterFact's facts: {figures}"


def mend_falls_in_sequence() -> Verdict:
    points = sequence("mend")
    figures = "; ".join(f"{number}: {triple(points[number])}" for number in sorted(points))
    return verdict(score(points[10], "reliability") < 80), figures


def size_of_the_model() -> Verdict:
    return NOT_HERE, "the bundled models are of the same two kinds, with 5.7 and 1.6 million weights"


def teacher_forcing_flatters() -> Verdict:
    found = units("single-edits.real", dataset="ZsRE")
    gaps = {row["method"]: (score(row, "reliability", "teacher_forced"), score(row, "reliability")) for row in found}
    held = [forced > free for forced, free in gaps.values()]
    figures = ", ".join(f"`{name}` {forced:.0f} / {free:.0f}" for name, (forced, free) in gaps.items())
    return verdict(*held), f"ZsRE, teacher-forced / written: {figures}"
