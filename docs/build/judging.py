"""What findings are judged by: rows of the committed results, scores in percent, verdicts.

And the judges that are more than rows and bounds, by the name that `findings.toml` has for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import blocks
from blocks import Row

YES, NO, PARTLY = "reproduced", "not reproduced", "in part"
METRICS = ("reliability", "generality", "locality")
FIGURES, TABLE_1 = "f-learning-figures.world", "f-learning-table-1.world"
TABLE_1_REAL = "f-learning-table-1.real"
RATES = {"f-learning-ft": ", rate 0.3", "f-learning-lora": ", rate 0.7", "f-learning-lora-ft": ", rate 3.0"}
Verdict = tuple[str, str]
"""What became of a claim, and the figures."""


class Missing(Exception):
    """There is no such row yet."""


def rows(name: str, **labels: Any) -> list[Row]:
    """The rows of a result file with these labels; of a recipe's, those that came to a good end. Raises `Missing` where
    there is none.
    """
    if not (blocks.RESULTS / f"{name}.json").exists():
        raise Missing
    found = [row for row in blocks.rows(name, **labels) if row.get("state", "ok") == "ok"]
    if not found:
        raise Missing
    return found


def units(recipe: str, **labels: Any) -> list[Row]:
    """The units of a recipe with these labels that came to a good end. Raises `Missing` where there is none."""
    return rows(f"recipes/{recipe}", **labels)


def score(row: Row, metric: str, scoring: str = "generate") -> float:
    """A metric in percent; a family such as `locality` is the plain mean of its kinds."""
    scores = row["scores"].get(scoring, {})
    kinds = [found["mean"] for name, found in scores.items() if name == metric or name.split(".")[0] == metric]
    if not kinds:
        raise Missing
    return 100 * sum(kinds) / len(kinds)


def unit_mean(recipe: str, metric: str, scoring: str = "generate", **labels: Any) -> float:
    """A metric's mean over such units, seeds and data sets alike, in percent."""
    return fmean(score(row, metric, scoring) for row in units(recipe, **labels))


def first(recipes: Iterable[str], **labels: Any) -> Row:
    """The first unit with these labels, from whichever recipe has it. Raises `Missing` where there is none."""
    for recipe in recipes:
        try:
            return units(recipe, **labels)[0]
        except Missing:
            continue
    raise Missing


def checkpoints(row: Row) -> dict[int, Row]:
    """A sequence's checkpoints by the number of edits so far."""
    return {point["num_edits"]: point for point in row["checkpoints"]}


def verdict(*held: bool) -> str:
    """What became of a claim, by the parts of its criterion."""
    return YES if all(held) else PARTLY if any(held) else NO


def neighbours_are_pulled_by_the_edit() -> Verdict:
    pairs = {}
    for name in ("ft", "ft-l", "rome", "memit", "mend", "kn", "serac"):
        row = first(("single-edits.tables",), method=name, model="world", dataset="world-counterfact")
        pairs[name] = (score(row, "locality.distracting"), score(row, "locality"))
    figures = ", ".join(f"`{name}` {near:.0f} / {whole:.0f}" for name, (near, whole) in pairs.items())
    held = [near < whole - 5 for near, whole in pairs.values()]
    return verdict(*held), f"kept with the edit in front / all kinds: {figures}"


def serac_trains_longer_than_mend() -> Verdict:
    minutes = {
        name: blocks.recipe("trained-editors.tables")["training"]["world"][name]["seconds"] / 60
        for name in ("mend", "serac")
    }
    figures = ", ".join(f"`{name}` {value:.0f} minutes" for name, value in minutes.items())
    return verdict(minutes["serac"] > 1.5 * minutes["mend"]), figures


def teacher_forcing_flatters() -> Verdict:
    found = units("single-edits.real", dataset="ZsRE")
    gaps = {row["method"]: (score(row, "reliability", "teacher_forced"), score(row, "reliability")) for row in found}
    held = [forced > free for forced, free in gaps.values()]
    figures = ", ".join(f"`{name}` {forced:.0f} / {free:.0f}" for name, (forced, free) in gaps.items())
    return verdict(*held), f"ZsRE, teacher-forced / written: {figures}"


def _pairs(first: str, second: str, of: str) -> list[tuple[Row, Row]]:
    """Rows of two methods in a recipe's batches: one pair a model, data set and seed."""
    by = {(row["method"], row["model"], row["dataset"], row["seed"]): row for row in units(of)}
    # Where rates are swept, those that the paper has for ZsRE.
    names = [max(key[0] for key in by if key[0] in (name, name + RATES.get(name, ""))) for name in (first, second)]
    found = [(row, by[names[1], *place]) for (method, *place), row in by.items() if method == names[0]]
    if not found:
        raise Missing
    return found


def _gains(first: str, second: str, of: str) -> dict[str, list[float]]:
    """What the first has more than the second, teacher-forced, in points."""
    pairs = _pairs(first, second, of)
    return {
        metric: [score(one, metric, "teacher_forced") - score(two, metric, "teacher_forced") for one, two in pairs]
        for metric in METRICS
    }


def _shown(gains: dict[str, list[float]]) -> str:
    figures = ", ".join(
        f"{name} {fmean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})" for name, values in gains.items()
    )
    return f"points, {len(gains[METRICS[0]])} batches: {figures}"


def _improves(variant: str, learner: str, of: str) -> Verdict:
    gains = _gains(variant, learner, of)
    held = (
        *(fmean(gains[metric]) > 0 and min(gains[metric]) > -0.5 for metric in METRICS[:2]),
        fmean(gains["locality"]) > -2,
    )
    return verdict(*held), _shown(gains)


def forgetting_improves_full_tuning(of: str = TABLE_1_REAL) -> Verdict:
    return _improves("f-learning-ft", "ft", of)


def forgetting_improves_lora(of: str = TABLE_1_REAL) -> Verdict:
    return _improves("f-learning-lora", "lora", of)


def lora_forgets_for_full_tuning(of: str = TABLE_1_REAL) -> Verdict:
    """Against forgetting by full fine-tuning, not against learning alone."""
    gains = _gains("f-learning-lora-ft", "f-learning-ft", of)
    held = [fmean(gains[metric]) > -2 for metric in METRICS[:2]] + [fmean(gains["locality"]) > 0]
    return verdict(*held), _shown(gains)


def lora_forgets_at_less_cost(of: str = TABLE_1_REAL) -> Verdict:
    pairs = _pairs("f-learning-lora-ft", "f-learning-ft", of)
    with_lora, without = (fmean([pair[place]["seconds_per_edit"] for pair in pairs]) for place in (0, 1))
    figures = (
        f"{1000 * with_lora:.0f} against {1000 * without:.0f} ms an edit in batches of {pairs[0][0]['num_edits']:,}"
    )
    return verdict(with_lora < without), figures


def lora_learns_less(of: str = TABLE_1_REAL) -> Verdict:
    gains = _gains("lora", "ft", of)
    return verdict(fmean(gains["reliability"]) < -10), _shown(gains)


def forgetting_takes_as_long_again() -> Verdict:
    seconds = {
        name: units("single-edits.real", dataset="CounterFact", method=name)[0]["seconds_per_edit"]
        for name in ("ft", "f-learning-ft")
    }
    ratio = seconds["f-learning-ft"] / seconds["ft"]
    return verdict(1.5 < ratio < 2.6), f"single edits of CounterFact: {ratio:.1f} times `ft`'s time; the paper 2.0"


def low_rates_change_little() -> Verdict:
    changed, usual = (
        {name: unit_mean(TABLE_1, "reliability", method=f"{name}, the {rate} rate") for name in ("rome", "memit")}
        for rate in ("paper's", "usual")
    )
    figures = "; ".join(f"`{name}` {changed[name]:.0f}, at the usual rate {usual[name]:.0f}" for name in changed)
    return verdict(changed["rome"] < 20, changed["memit"] > changed["rome"] + 20), f"new answer written: {figures}"


def _old_answers(learner: str) -> dict[float, float]:
    """Rate of forgetting to how often the old answer is still the most probable one, percent."""
    found = {0.0: unit_mean(FIGURES, "old_answer_rate", "teacher_forced", method="forgetting alone, ft, 0")}
    for rate in (0.1, 0.3, 0.5, 0.7, 0.9):
        labels = {"method": f"forgetting alone, {learner}, {rate:g}"}
        found[rate] = unit_mean(FIGURES, "old_answer_rate", "teacher_forced", **labels)
    return found


def full_tuning_forgets_steadily() -> Verdict:
    found = _old_answers("ft")
    values = list(found.values())
    falls = all(later <= earlier + 2 for earlier, later in zip(values, values[1:], strict=False))
    figures = ", ".join(f"{rate:g}: {value:.0f}" for rate, value in found.items())
    return verdict(falls, values[-1] < 20), f"old answer by rate, {figures}; the paper 95, 93, 73, 39, 18, 5"


def lora_hardly_forgets() -> Verdict:
    found = _old_answers("lora")
    figures = ", ".join(f"{rate:g}: {value:.0f}" for rate, value in found.items())
    return verdict(found[0.0] - found[0.9] < 10), f"old answer by rate, {figures}"


def _distances(method: str) -> dict[str, float]:
    (row,) = units(FIGURES, method=method)[:1]
    return {
        name.removeprefix("weight_distance."): found["after"]
        for name, found in row["measures"].items()
        if name.startswith("weight_distance.") and found["after"] is not None
    }


def mlp_moves_most() -> Verdict:
    found = _distances("forgetting alone, ft, 0.3")
    layers = sorted({name.split(".")[1] for name in found if name.startswith("mlp.")})
    held = [found[f"mlp.{layer}"] > found.get(f"attn.{layer}", 0.0) for layer in layers]
    figures = ", ".join(f"{found.get(f'attn.{layer}', 0.0):.2f} / {found[f'mlp.{layer}']:.2f}" for layer in layers)
    return verdict(*held), f"attention / MLP by layer: {figures}"


def lora_moves_little() -> Verdict:
    found = _distances("forgetting alone, lora, 0.3")
    total = sum(value for name, value in found.items() if not name.startswith("attn."))
    figures = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    return verdict(max(found.values()) < 1, total == 0), figures


def other_abilities_stay() -> Verdict:
    figures, held = [], []
    for name in ("forgetting alone, ft, 0.3", "forgetting, then learning, ft"):
        (row,) = units(FIGURES, method=name)[:1]
        kept, moved = score(row, "locality.out_of_scope"), row["perplexity"]
        held.append(kept >= 90)
        figures.append(f"{name}: {kept:.0f} kept, perplexity {moved['before']:.2f} to {moved['after']:.2f}")
    return verdict(*held), f"unrelated questions; {'; '.join(figures)}"


def patches_are_reused() -> Verdict:
    (row,) = rows("forgetting_reuse")
    figures = (
        f"same patch bit for bit: {'yes' if row['is_equal'] else 'no'}; seconds {row['share_of_seconds']:.2f} of anew"
    )
    return verdict(row["is_equal"], row["share_of_seconds"] < 0.9), figures
