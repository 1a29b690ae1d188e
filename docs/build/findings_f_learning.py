"""What the F-Learning paper claims (arXiv:2311.08011), and how each claim is judged here."""

from __future__ import annotations

from typing import Any

from judging import NOT_HERE, Missing, Verdict, rows, score, unit_mean, units, verdict

DATASETS = ("zsre", "counterfact")
METRICS = ("reliability", "generality", "locality")
FIGURES, TABLE_1 = "f-learning-figures.world", "f-learning-table-1.world"


def _pairs(first: str, second: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of two methods on the models that know real facts: one pair a data set and seed."""
    found = []
    for dataset in DATASETS:
        table = [row for row in rows(f"f_learning_table_{dataset}") if row.get("row") == "table"]
        by = {(row["method"], row["seed"]): row for row in table if row["part"] == "reported"}
        found += [(by[first, seed], by[second, seed]) for method, seed in sorted(by) if method == first]
    if not found:
        raise Missing
    return found


def _gains(first: str, second: str) -> dict[str, list[float]]:
    """What the first has more than the second, teacher-forced, in points."""
    pairs = _pairs(first, second)
    return {
        metric: [score(one, metric, "teacher_forced") - score(two, metric, "teacher_forced") for one, two in pairs]
        for metric in METRICS
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shown(gains: dict[str, list[float]]) -> str:
    figures = ", ".join(
        f"{name} {_mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})" for name, values in gains.items()
    )
    return f"points, two data sets, three seeds: {figures}"


def _improves(variant: str, learner: str) -> Verdict:
    gains = _gains(variant, learner)
    held = (
        *(_mean(gains[metric]) > 0 and min(gains[metric]) > -0.5 for metric in METRICS[:2]),
        _mean(gains["locality"]) > -2,
    )
    return verdict(*held), _shown(gains)


def forgetting_improves_full_tuning() -> Verdict:
    return _improves("f-learning-ft", "ft")


def forgetting_improves_lora() -> Verdict:
    return _improves("f-learning-lora", "lora")


def lora_forgets_for_full_tuning() -> Verdict:
    """Against forgetting by full fine-tuning, not against learning alone."""
    gains = _gains("f-learning-lora-ft", "f-learning-ft")
    held = [_mean(gains[metric]) > -2 for metric in METRICS[:2]] + [_mean(gains["locality"]) > 0]
    return verdict(*held), _shown(gains)


def lora_forgets_at_less_cost() -> Verdict:
    pairs = _pairs("f-learning-lora-ft", "f-learning-ft")
    with_lora, without = (_mean([pair[place]["seconds_per_edit"] for pair in pairs]) for place in (0, 1))
    figures = f"{1000 * with_lora:.0f} against {1000 * without:.0f} ms an edit in batches of 1,000"
    return verdict(with_lora < without), figures


def lora_learns_less() -> Verdict:
    gains = _gains("lora", "ft")
    return verdict(_mean(gains["reliability"]) < -10), _shown(gains)


def forgetting_takes_as_long_again() -> Verdict:
    seconds = {
        name: units("single-edits.real", dataset="CounterFact", method=name)[0]["seconds_per_edit"]
        for name in ("ft", "f-learning-ft")
    }
    ratio = seconds["f-learning-ft"] / seconds["ft"]
    return verdict(1.5 < ratio < 2.6), f"single edits of CounterFact: {ratio:.1f} times `ft`'s time; the paper 2.0"


def low_rates_change_little() -> Verdict:
    changed = {
        name: unit_mean(TABLE_1, "reliability", method=f"{name}, the paper's rate") for name in ("rome", "memit")
    }
    usual = {name: unit_mean(TABLE_1, "reliability", method=f"{name}, the usual rate") for name in ("rome", "memit")}
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


def large_tasks() -> Verdict:
    return NOT_HERE, "small models do none of it; the recipe `f-learning-table-5.full` asks a model that does"


def patches_are_reused() -> Verdict:
    (row,) = rows("forgetting_reuse")
    figures = (
        f"same patch bit for bit: {'yes' if row['is_equal'] else 'no'}; seconds {row['share_of_seconds']:.2f} of anew"
    )
    return verdict(row["is_equal"], row["share_of_seconds"] < 0.9), figures
