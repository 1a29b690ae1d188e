"""Writes what is generated in the docs: tables from results, options from configs, help from the command line.

    python docs/build/pages.py           rewrites the blocks between `<!-- name -->` and `<!-- end -->`
    python docs/build/pages.py --check   exit code 1 when a page would change

Only the committed results are read, so a number in a page is a number in a result file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from added_pages import BLOCKS as ADDED  # noqa: E402
from finding_pages import findings  # noqa: E402
from many_pages import batch_curves, batches, larger_world_model, sequence_curves, sequences, speed  # noqa: E402
from model_pages import families  # noqa: E402
from page_blocks import SHORT, percent, read, rule, size, table  # noqa: E402
from real_pages import BLOCKS  # noqa: E402
from recipe_pages import BLOCKS as RECIPES  # noqa: E402
from search_pages import layer_sweep, search_edits, search_families, search_lengths, search_random  # noqa: E402
from trained_pages import BLOCKS as TRAINED  # noqa: E402

BLOCK = re.compile(r"(<!-- (?P<name>[a-z_-]+)(?:: (?P<argument>[a-z0-9_:., -]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def single_edits_summary(_argument: str) -> str:
    """The README's table: one data set, free generation."""
    record = read("single_edits")
    metrics = [name for name in SHORT if name not in ("locality.distracting", "locality.out_of_scope")]
    rows = []
    for row in (r for r in record["rows"] if r["dataset"] == "world-counterfact"):
        scores = row["scores"]["generate"]
        cells = [percent(scores.get(name)) for name in metrics]
        rows.append([f"`{row['method']}`", *cells, f"{row['seconds_per_edit']:.2f}", size(row["patch_bytes"])])
    n = record["settings"]["num_edits"]["world-counterfact"]
    by = "free generation with exact match" if rule(record) == "exact" else "free generation"
    caption = (
        f"{n} single edits of test facts, {by}, percent; presets chosen on other facts. "
        f"Seconds an edit on one core of {record['hardware']['machine']}.\n\n"
    )
    return caption + table(["method", *(SHORT[name] for name in metrics), "s / edit", "patch"], rows)


def single_edits(argument: str) -> str:
    """All metrics of one data set under one scoring, with intervals; the model is the bundled decoder unless named."""
    dataset, scoring, *model = argument.split(":")
    record = read("_".join(["single_edits", *model]).replace("-", "_"))
    rows = []
    found = [row for row in record["rows"] if row["dataset"] == dataset]
    metrics = [name for name in SHORT if any(name in row["scores"][scoring] for row in found)]
    for row in found:
        scores = row["scores"][scoring]
        rows.append([f"`{row['method']}`", *(percent(scores.get(name), with_interval=True) for name in metrics)])
    n = record["settings"]["num_edits"][dataset]
    probes = ", ".join(f"{SHORT[name]} {found[0]['scores'][scoring][name]['n']}" for name in metrics)
    caption = (
        f"`{dataset}`, `{rule(record, scoring)}`, {n} single edits; percent with 95% interval. Probes: {probes}.\n\n"
    )
    return caption + table(["method", *(SHORT[name] for name in metrics)], rows)


def single_edits_cost(argument: str) -> str:
    """Seconds, bytes and perplexity on one data set; the model is the bundled decoder unless named."""
    dataset, *model = argument.split(":")
    record = read("_".join(["single_edits", *model]).replace("-", "_"))
    rows = []
    for row in (r for r in record["rows"] if r["dataset"] == dataset):
        perplexity = row["perplexity"] or {}
        after = perplexity.get("after")
        rows.append(
            [
                f"`{row['method']}`",
                f"{row['seconds_per_edit']:.2f}",
                size(row["patch_bytes"]),
                _perplexity(perplexity["before"]),
                "-" if after is None else _perplexity(after),
            ]
        )
    return table(["method", "s / edit", "patch", "perplexity before", "after"], rows)


def _perplexity(value: float) -> str:
    """With two decimals, or in millions where a model has no idea of the text."""
    return f"{value:.2f}" if value < 1e6 else f"{value / 1e6:.1f} million"


def forgetting(argument: str) -> str:
    """Rates by passes for one variant: means over seeds, with the range of the seeds."""
    variant, metric = argument.split(":")
    record = read("forgetting_before_learning")
    rows = [row for row in record["rows"] if row["variant"] == variant]
    if variant == "f-learning-lora-ft":
        rows += [row for row in record["rows"] if row["variant"] == "f-learning-ft" and row["rate"] == 0]
    epochs = sorted({row["epochs"] for row in rows})
    lines = []
    for rate in sorted({row["rate"] for row in rows}):
        cells = []
        for passes in epochs:
            values = [
                100 * row["scores"]["generate"][metric]["mean"]
                for row in rows
                if row["rate"] == rate and row["epochs"] == passes
            ]
            cells.append(f"{mean(values):.0f} ({min(values):.0f}-{max(values):.0f})" if values else "")
        lines.append(["0 (learning alone)" if rate == 0 else f"{rate:g}", *cells])
    passes = [f"{count} pass{'es' if count > 1 else ''}" for count in epochs]
    return table(["rate", *passes], lines)


def convergence(_argument: str) -> str:
    """The error estimate on the bundled model, by tokens for every dimension and layer."""
    rows = [row for row in read("second_moments")["rows"] if row["part"] == "convergence"]
    layers = sorted(rows[0]["errors"])
    header = ["tokens for every dimension", *(f"layer {layer}" for layer in layers), "sqrt(d / n)"]
    return table(
        header,
        [
            [
                str(row["multiple"]),
                *(f"{row['errors'][layer]:.2f}" for layer in layers),
                f"{row['multiple'] ** -0.5:.2f}",
            ]
            for row in rows
        ],
    )


def second_moments(_argument: str) -> str:
    """CPU seconds of a pass and of the solves, at GPT-2 small's dimensions."""
    record = read("second_moments")
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        parts.setdefault(row["part"], []).append(row)
    lines = []
    for row in parts["pass"]:
        what = f"a pass over {row['tokens'][0]:,} tokens, layers {', '.join(map(str, row['layers']))}"
        shares = f"{row['tokens_per_second']:.0f} tokens a second; {100 * row['share_of_moments']:.0f}% of it the sums"
        lines.append([what, f"{row['cpu_seconds']:.0f}", shares])
    (solved,) = parts["solves"]
    seconds = solved["cpu_seconds"]
    lines.append([f"factorising C, d {solved['width']:,}", f"{seconds['factorise']:.2f}", "once a layer"])
    for n, spent in seconds["ridge"].items():
        lines.append([f"MEMIT's solve, {n} facts", f"{spent:.3f}", f"dense: {seconds['dense'][n]:.2f}"])
    caption = f"{record['settings']['model']}; CPU seconds on one core of {record['hardware']['machine']}.\n\n"
    return caption + table(["", "CPU s", ""], lines)


def target_vectors(_argument: str) -> str:
    """CPU seconds a fact of each search, beside one fact at a time through the whole model."""
    record = read("target_vectors")
    settings, timed = record["settings"], [row for row in record["rows"] if "search" in row]
    once, twice = (row["seconds_per_fact"] for row in timed[:2])
    lines = [["one fact at a time, whole model", f"{once:.1f}", "1", f"{twice / once:.1f}"]]
    lines.append(["the same, head computed twice (MEMIT's code)", f"{twice:.1f}", f"{once / twice:.1f}", "1"])
    for row in timed[2:]:
        spent = row["seconds_per_fact"]
        lines.append([row["search"], f"{spent:.2f}", f"{once / spent:.1f}", f"{twice / spent:.1f}"])
    caption = (
        f"{settings['model']}; {settings['facts']} facts with prompts of 10 to 25 tokens, layer {settings['layer']}; "
        f"`adam` with {len(settings['templates'])} contexts and the essence prompt, 20 passes and no early end, "
        f"`gauss-newton` with the prompt alone. CPU seconds a fact on one core of {record['hardware']['machine']}.\n\n"
    )
    return caption + table(["", "s / fact", "times faster", "than with two heads"], lines)


def target_reach(_argument: str) -> str:
    """How many facts of the bundled model each search brings to its threshold."""
    rows = [row for row in read("target_vectors")["rows"] if "reach" in row]
    lines = [
        [
            row["reach"],
            f"{row['mean_passes']:.1f}",
            f"{row['below_nll']} of {row['facts']}",
            f"{row['mean_norm_of_initial']:.0f}",
            f"{row['mean_share_of_stream']:.2f}",
            f"{1000 * row['seconds_per_fact']:.0f}",
        ]
        for row in rows
    ]
    caption = f"Facts of the bundled model, layer {rows[0]['layer']}, the prompt alone as context.\n\n"
    return caption + table(
        ["", "passes", "likelihood reached", "norm of initial", "delta / stream", "CPU ms / fact"], lines
    )


def memory(_argument: str) -> str:
    """Peak memory of a large model's edits, beside the interpreter and the weights."""
    record = read("memory")
    settings = record["settings"]
    weights = record["rows"][0]["weights"]
    rows = [
        [
            f"`{row['case']}`",
            f"{row['trained'] / 1e6:.1f}",
            f"{(row['peak'] - row['imported']) / 1e6:.0f}",
            f"{(row['peak'] - row['imported']) / weights:.2f}",
            f"{(row['bound'] - row['imported']) / 1e6:.0f}",
        ]
        for row in record["rows"]
    ]
    caption = (
        f"Llama-2-7B's dimensions with {settings['layers']} layers, {settings['dtype']}, {weights / 1e6:.0f} MB of "
        "weights, on a CPU. Peak memory of the process, less what it has after importing everything.\n\n"
    )
    header = ["", "trained numbers, millions", "peak, MB", "peak / weights", "stated bound, MB"]
    return caption + table(header, rows)


def causal_trace(_argument: str) -> str:
    """What the best single state and the MLPs of each layer bring back in the bundled model, on average."""
    record = read("causal_trace")
    average, effects = record["average"], record["average"]["effects"]
    layers = range(len(effects["mlp"]["last token"]))
    rows = [
        [f"{kind}, {place}", *(f"{effects[kind][place][layer]:.2f}" for layer in layers)]
        for kind, place in (
            ("hidden", "last subject token"),
            ("hidden", "last token"),
            ("mlp", "last subject token"),
            ("mlp", "last token"),
            ("attention", "last subject token"),
            ("attention", "last token"),
        )
    ]
    caption = (
        f"{len(average['prompts'])} facts that the bundled model knows, {average['samples']} samples of the noise, "
        f"windows of {average['window']} layers. The answer's mean probability is {average['clean']:.2f}, with the "
        f"subject corrupted {average['corrupted']:.2f}; the table has what one state adds to that, by layer.\n\n"
    )
    return caption + table(["kind, token", *(str(layer) for layer in layers)], rows)


def recommended(_argument: str) -> str:
    """The layers that the trace of the bundled model recommends."""
    one, three = (read("causal_trace")["recommended"][key] for key in ("1", "3"))
    values = ", ".join(f"{value:.2f}" for value in one["restored"])
    return (
        f"In the bundled model, over {one['facts_traced']} facts, the MLPs from layer {one['first_layer']} on restore "
        f"the probability to {values} (corrupted {one['corrupted']:.2f}, clean {one['clean']:.2f}), so layer "
        f"{one['peak']} is recommended, and layers {three['layers'][0]} to {three['layers'][-1]} where three are "
        "wanted.\n"
    )


def options(method: str) -> str:
    """The options of a method with their defaults and meaning, from its config class."""
    from palimpsest.methods.catalogue import METHODS

    row = METHODS[method]
    return table(["option", "default", "meaning"], _option_rows(row.load().Config, row.options))


def training(method: str) -> str:
    """The options of training a method's editor with their defaults and meaning, from their class."""
    from palimpsest.methods.catalogue import METHODS

    return table(["option", "default", "meaning"], _option_rows(METHODS[method].load().Training, {}))


def _option_rows(config: Any, chosen: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """A row for every option; those of options inside options by their dotted names."""
    comments, rows = _comments(config), []
    for name, entry in config.model_fields.items():
        default = chosen.get(name, entry.get_default(call_default_factory=True))
        if hasattr(entry.annotation, "model_fields"):
            inner = entry.get_default(call_default_factory=True).model_dump() | dict(chosen.get(name, {}))
            rows += _option_rows(entry.annotation, inner, f"{prefix}{name}.")
        else:
            meaning = comments.get(name, "").replace("|", r"\|")
            rows.append([f"`{prefix}{name}`", f"`{json.dumps(default)}`", meaning])
    return rows


def _comments(config: type) -> dict[str, str]:
    """The text under each field of a config class and its bases, as the source has it."""
    import ast
    import inspect

    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not owner.__module__.startswith("palimpsest"):
            continue
        (body,) = (node.body for node in ast.parse(inspect.getsource(owner)).body if isinstance(node, ast.ClassDef))
        for field, after in zip(body, body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(inspect.cleandoc(str(after.value.value)).split())
    return found


def command_help(_argument: str) -> str:
    """The help text of every command."""
    parts = []
    names = [
        "",
        "demo",
        "edit",
        "ask",
        "apply",
        "undo",
        "serve",
        "push",
        "verify",
        "eval",
        "report",
        "stats",
        "train",
        "list",
        "doctor",
        "trace",
        "world",
    ]
    names += ["world train", "world audit", "world export", "portability build"]
    for name, text in zip(names, _helps([name.split() for name in names]), strict=True):
        parts.append(f"## palimpsest {name}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


# All of them from one process: to start one costs more than to write a help page.
_ASKING = """
import contextlib, io, json, sys
from palimpsest.cli import main
texts = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = main([*words, "--help"])
    if code:
        sys.exit(code)
    texts.append(text.getvalue())
json.dump(texts, sys.stdout)
"""


def _helps(commands: list[list[str]]) -> list[str]:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    asking = [sys.executable, "-c", _ASKING, json.dumps(commands)]
    done = subprocess.run(asking, capture_output=True, text=True, check=True, env=environment)
    return ["\n".join(line.rstrip() for line in text.strip("\n").splitlines()) for text in json.loads(done.stdout)]


WRITERS: dict[str, Callable[[str], str]] = {
    "single_edits_summary": single_edits_summary,
    "single_edits": single_edits,
    "single_edits_cost": single_edits_cost,
    "forgetting": forgetting,
    "convergence": convergence,
    "second_moments": second_moments,
    "target_vectors": target_vectors,
    "target_reach": target_reach,
    "memory": memory,
    "causal_trace": causal_trace,
    "recommended": recommended,
    "findings": findings,
    "search_random": search_random,
    "search_families": search_families,
    "search_edits": search_edits,
    "search_lengths": search_lengths,
    "batches": batches,
    "sequences": sequences,
    "speed": speed,
    "batch_curves": batch_curves,
    "larger_world_model": larger_world_model,
    "sequence_curves": sequence_curves,
    "layer_sweep": layer_sweep,
    **BLOCKS,
    **TRAINED,
    **ADDED,
    **RECIPES,
    "options": options,
    "training": training,
    "command_help": command_help,
    "families": families,
}


def fill(text: str) -> str:
    """A page with every generated block written anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{WRITERS[match['name']](match['argument'] or '')}{match[4]}"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    """The pages that may hold generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
    """Fills or checks every page."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        fresh = fill(text)
        if fresh != text:
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    for page in stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {page.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
