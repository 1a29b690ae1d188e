"""`judge` has another model read what an edited model wrote."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import endpoints, inputs, terminal

EXAMPLES = ("palimpsest judge my-run --endpoint https://host/v1 --endpoint-model NAME --dry-run",)
PANEL = terminal.MEASURING


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `eval --out` wrote.", show_default=False)],
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="A server of the chat completions protocol, .../v1.")
    ],
    endpoint_model: Annotated[
        str, typer.Option("--endpoint-model", metavar="NAME", help="The judge's model name at the endpoint.")
    ],
    option: endpoints.FieldsOption = None,
    key_variable: endpoints.KeyOption = None,
    timeout: endpoints.TimeoutOption = 60.0,
    retries: endpoints.RetriesOption = 4,
    requests_per_minute: endpoints.RateOption = None,
    prices: endpoints.PricesOption = None,
    max_cost: endpoints.MaxCostOption = None,
    dry_run: endpoints.DryRunOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="A new JSON file for every verdict.")] = None,
    as_json: inputs.JsonOption = False,
) -> None:
    """Have a language model judge a run's answers: correct or incorrect. Verdicts are cached and never asked twice."""
    from palimpsest.datasets.portability import Endpoint
    from palimpsest.evaluation import Judge, load_run
    from palimpsest.files import cache_folder, require_absent, write_text

    endpoints.require_prices(max_cost, prices)
    if out is not None:
        require_absent(out)
    record = load_run(run)
    server = Endpoint(
        endpoint,
        endpoint_model,
        key=endpoints.key_of(endpoint, key_variable),
        options=inputs.parse_options(option),
        timeout=timeout,
        retries=retries,
        requests_per_minute=requests_per_minute,
    )
    cache = cache_folder()
    asker = Judge(server, None if cache is None else cache / "verdicts")
    forecast = asker.estimate(record)
    estimated: dict[str, Any] = {**asdict(forecast), "cost": None if prices is None else forecast.cost(*prices)}
    endpoints.say_forecast(estimated, prices)
    endpoints.require_affordable(
        estimated, max_cost, problem="Judging would cost more than it may.", remedy="judge a run of fewer edits"
    )
    if dry_run:
        terminal.emit_json({"run": str(run), "estimate": estimated}) if as_json else None
        return
    with terminal.progress_bar("judging") as progress:
        found = asker.judge(record, progress=progress)
    scores = {
        scoring: {metric: one.model_dump() for metric, one in metrics.items()}
        for scoring, metrics in found.scores.items()
    }
    result: dict[str, Any] = {
        "run": str(run),
        "judge": server.identity,
        "scores": scores,
        "asked": found.asked,
        "cached": found.cached,
        "unscored": found.unscored,
        "estimate": estimated,
    }
    if out is not None:
        whole = {**result, "probes": [probe.model_dump(mode="json") for probe in found.probes]}
        write_text(out, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        terminal.emit_json(result)
        return
    shown = [name for name in ("judge", "generate", "exact") if name in scores]
    kinds = dict.fromkeys(kind for name in shown for kind in scores[name] if not kind.endswith("_rate"))
    rows = [
        [kind, *(terminal.share(scores[name].get(kind, {}).get("mean")) for name in shown)]
        + [str(scores["judge"].get(kind, {}).get("n", 0))]
        for kind in kinds
    ]
    terminal.print_table(("metric", *shown, "judged"), rows)
    for reason, number in found.unscored.items():
        terminal.say(f"not judged: {number}: {reason}")
    if out is not None:
        terminal.say(f"Written to {out}.")
