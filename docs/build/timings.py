"""Generated tables of what things cost, from `bench/timing`; of traces; and of the committed runs of recipes."""

from __future__ import annotations

from statistics import median
from typing import Any

from blocks import RESULTS, Columns, Row, listed, patch, read, recipe, rows, table


def convergence(_argument: str) -> str:
    """The error estimate on the bundled model, by tokens for every dimension and layer."""
    found = rows("second_moments", part="convergence")
    columns: Columns = {"tokens for every dimension": lambda row: str(row["multiple"])}
    for layer in sorted(found[0]["errors"]):
        columns[f"layer {layer}"] = lambda row, layer=layer: f"{row['errors'][layer]:.2f}"  # type: ignore[misc]
    return listed(found, {**columns, "sqrt(d / n)": lambda row: f"{row['multiple'] ** -0.5:.2f}"})


def second_moments(_argument: str) -> str:
    """CPU seconds of a pass and of the solves, at GPT-2 small's dimensions."""
    lines = []
    for row in rows("second_moments", part="pass"):
        what = f"a pass over {row['tokens'][0]:,} tokens, layers {', '.join(map(str, row['layers']))}"
        shares = f"{row['tokens_per_second']:.0f} tokens a second; {100 * row['share_of_moments']:.0f}% of it the sums"
        lines.append([what, f"{row['cpu_seconds']:.0f}", shares])
    [solved] = rows("second_moments", part="solves")
    seconds = solved["cpu_seconds"]
    lines.append([f"factorising C, d {solved['width']:,}", f"{seconds['factorise']:.2f}", "once a layer"])
    for n, spent in seconds["ridge"].items():
        lines.append([f"MEMIT's solve, {n} facts", f"{spent:.3f}", f"dense: {seconds['dense'][n]:.2f}"])
    return _on("second_moments", "{model}; CPU seconds") + table(["", "CPU s", ""], lines)


def target_vectors(_argument: str) -> str:
    """CPU seconds a fact of each search."""
    found = [row for row in rows("target_vectors") if "search" in row]
    contexts = len(read("target_vectors")["settings"]["templates"])
    told = (
        f"{{model}}; {{facts}} facts with prompts of 10 to 25 tokens, layer {{layer}}; `adam` with {contexts} contexts "
        "and the essence prompt, 20 passes and no early end, `gauss-newton` with the prompt alone. CPU seconds a fact"
    )
    columns: Columns = {
        "": lambda row: str(row["search"]),
        "s / fact": lambda row: f"{row['seconds_per_fact']:.2f}",
    }
    return _on("target_vectors", told) + listed(found, columns)


def target_reach(_argument: str) -> str:
    """How many facts of the bundled model each search brings to its threshold."""
    found = [row for row in read("target_vectors")["rows"] if "reach" in row]
    columns: Columns = {
        "": lambda row: str(row["reach"]),
        "passes": lambda row: f"{row['mean_passes']:.1f}",
        "likelihood reached": lambda row: f"{row['below_nll']} of {row['facts']}",
        "norm of initial": lambda row: f"{row['mean_norm_of_initial']:.0f}",
        "delta / stream": lambda row: f"{row['mean_share_of_stream']:.2f}",
        "CPU ms / fact": lambda row: f"{1000 * row['seconds_per_fact']:.0f}",
    }
    caption = f"Facts of the bundled model, layer {found[0]['layer']}, the prompt alone as context.\n\n"
    return caption + listed(found, columns)


def memory(_argument: str) -> str:
    """Peak memory of a large model's edits, beside the interpreter and the weights."""
    settings, found = read("memory")["settings"], rows("memory")
    weights = found[0]["weights"]
    columns: Columns = {
        "": lambda row: f"`{row['case']}`",
        "trained numbers, millions": lambda row: f"{row['trained'] / 1e6:.1f}",
        "peak, MB": lambda row: f"{(row['peak'] - row['imported']) / 1e6:.0f}",
        "peak / weights": lambda row: f"{(row['peak'] - row['imported']) / weights:.2f}",
        "stated bound, MB": lambda row: f"{(row['bound'] - row['imported']) / 1e6:.0f}",
    }
    caption = (
        f"Llama-2-7B's dimensions with {settings['layers']} layers, {settings['dtype']}, {weights / 1e6:.0f} MB of "
        "weights, on a CPU. Peak memory of the process, less what it has after importing everything.\n\n"
    )
    return caption + listed(found, columns)


def speed(_argument: str) -> str:
    """Seconds by stage at GPT-2 small's dimensions."""
    columns: Columns = {
        "": lambda row: f"`{row['case']}`",
        "facts": lambda row: str(row["num_edits"]),
        "CPU s / fact": lambda row: f"{row['cpu_seconds'] / row['num_edits']:.2f}",
    }
    for name in ("targets", "solving", "training"):
        columns[name] = lambda row, name=name: (  # type: ignore[misc]
            f"{row['stages'][name] / row['num_edits']:.2f}" if name in row["stages"] else "-"
        )
    columns["peak memory, GB"] = lambda row: f"{row['peak_memory_bytes'] / 1e9:.1f}"
    columns["% of matrix rate"] = lambda row: f"{100 * row['share_of_rate']:.0f}"
    return listed(rows("speed_cpu"), columns)


def memory_time(_argument: str) -> str:
    """How long a prompt waits for SERAC's memory."""
    columns: Columns = {
        "entries": lambda row: f"{row['entries']:,}",
        "ms a prompt, alone": lambda row: f"{1000 * row['alone']:.1f}",
        "ms a prompt, 64 together": lambda row: f"{1000 * row['together']:.1f}",
        "patch": patch,
    }
    return listed(rows("serac_memory"), columns)


def prefix_time(_argument: str) -> str:
    """What reading the demonstrations once saves."""
    [row], settings = rows("ike_prefix"), read("ike_prefix")["settings"]
    asked = {"score": "scoring one answer each", "generate": f"writing {settings['tokens']} tokens each"}
    lines = [
        [name, f"{whole:.1f}", f"{shared:.1f}", f"{whole / shared:.0f}"]
        for name, whole, shared in ((name, row[f"{key}_whole"], row[f"{key}_shared"]) for key, name in asked.items())
    ]
    caption = (
        f"{settings['questions']} questions behind the same {row['tokens_before']} tokens, one thread, seconds in all;"
        f" largest difference of a log-probability {row['largest_difference']:.0e}.\n\n"
    )
    return caption + table(["", "read with each", "read once", "times faster"], lines)


def causal_trace(_argument: str) -> str:
    """What the best single state and the MLPs of each layer bring back in the bundled model, on average."""
    average = read("causal_trace")["trace"]
    layers = range(len(average["effects"]["mlp"]["last token"]))
    lines = [
        [f"{kind}, {place}", *(f"{average['effects'][kind][place][layer]:.2f}" for layer in layers)]
        for kind in ("hidden", "mlp", "attention")
        for place in ("last subject token", "last token")
    ]
    caption = (
        f"{len(average['prompts'])} facts that the bundled model knows, {average['samples']} samples of the noise, "
        f"windows of {average['window']} layers. The answer's mean probability is {average['clean']:.2f}, with the "
        f"subject corrupted {average['corrupted']:.2f}; the table has what one state adds to that, by layer.\n\n"
    )
    return caption + table(["kind, token", *(str(layer) for layer in layers)], lines)


def recommended(_argument: str) -> str:
    """The layers that the trace of the bundled model recommends."""
    found = read("causal_trace")["recommended"]
    values = ", ".join(f"{value:.2f}" for value in found["restored"])
    several = found["several_layers"]
    return (
        f"In the bundled model, over {found['facts_traced']} facts, the MLPs from layer {found['first_layer']} on "
        f"restore the probability to {values} (corrupted {found['corrupted']:.2f}, clean {found['clean']:.2f}), so "
        f"layer {found['peak']} is recommended, and layers {several[0]} to {several[-1]} where several are wanted.\n"
    )


def recipes(_argument: str) -> str:
    """Every committed run of a recipe: its units, how they ended, and the workers' minutes."""
    found = [record for record in _committed() if "measured_by" not in record]
    columns: Columns = {"recipe": lambda one: f"`{one['recipe']}`", "units": lambda one: str(len(one["rows"]))}
    for state in ("ok", "refused", "failed", "cancelled"):
        columns[state] = lambda one, state=state: str(one["states"].get(state, 0))  # type: ignore[misc]
    columns["worker minutes"] = lambda one: f"{sum(row.get('unit_seconds') or 0.0 for row in one['rows']) / 60:.0f}"
    columns["results"] = lambda one: f"`bench/results/recipes/{one['recipe']}.json`"
    return listed(sorted(found, key=lambda one: (not one["recipe"].endswith(".world"), one["recipe"])), columns)


def former(_argument: str) -> str:
    """Committed figures that a script measured before there was a recipe for them."""
    found = [record for record in _committed() if "measured_by" in record]
    return listed(
        found, {"recipe": lambda one: f"`{one['recipe']}`", "measured by": lambda one: f"`{one['measured_by']}`"}
    )


def _committed() -> list[Row]:
    return [recipe(file.stem) for file in sorted((RESULTS / "recipes").glob("*.json"))]


def two_workers(_argument: str) -> str:
    """Two workers' wall time against one's."""
    by_way: dict[str, list[float]] = {}
    for row in sorted(rows("two_workers"), key=lambda row: int(row["round"])):
        by_way.setdefault(row["way"], []).append(row["seconds"])
    told = {way: ", ".join(f"{one:.0f}" for one in seconds) for way, seconds in by_way.items()}
    two = median(by_way["two workers"])
    lines = [
        [way, f"{two / median(seconds):.2f}", told[way]] for way, seconds in by_way.items() if way != "two workers"
    ]
    units = read("two_workers")["settings"]["units"]
    caption = f"{units} units, seconds of each round; two workers took {told['two workers']}. Goal: at most 0.65.\n\n"
    return caption + table(["against", "two workers take", "its seconds"], lines)


def _on(name: str, text: str) -> str:
    record: dict[str, Any] = read(name)
    return f"{text.format(**record['settings'])} on one core of {record['hardware']['machine']}.\n\n"
