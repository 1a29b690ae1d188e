"""What editing costs, as the page shows it: only what was measured, an edit at a time."""

from __future__ import annotations

import re

import fake_runs as fakes
from palimpsest.report import costs
from palimpsest.report.settings import pooled
from palimpsest.report.tables import label_runs


def trained(record, seconds):
    training = {"seconds": seconds, "peak_memory_bytes": 1e9, "num_parameters": 1e5}
    return record.model_copy(update={"specification": record.specification.model_copy(update={"training": training})})


def cells(page, method, heading):
    """The cells of a method's row in the first table behind a text."""
    table = page[page.index(heading) :].split("</table>")[0]
    head = re.findall(r'<th scope="col">(.*?)</th>', table)
    row = next(line for line in table.split("<tr>") if f">{method}<" in line)
    return dict(zip(head[1:], re.findall(r"<td[^>]*>(.*?)</td>", row), strict=True))


def test_training_tokens_stages_and_distances():
    measures = {
        "token_seconds": {"before": 0.010, "after": 0.015},
        "weight_distance.mlp.0": {"before": None, "after": 1.25},
        "task.gsm8k.acc": {"before": 0.5, "after": 0.25},
    }
    seconds = {"forget": 2.0, "learn": 3.0, "evaluation": 50.0, "perplexity": 5.0, "total": 60.0}
    mend = trained(fakes.record("mend", seconds={"editor": 1.0, "other": 0.5}, num_edits=10), 2700.0)
    page = costs.sections(label_runs([fakes.record("ft", measures=measures, seconds=seconds, num_edits=10), mend]))
    found = cells(page, "ft", "<table")
    assert (found["a written token"], found["more than before"], found["training"]) == ("15 ms", "+50%", "–")
    assert cells(page, "mend", "<table")["training"] == "45 min"
    assert cells(page, "ft", "Where the time goes") == {
        "editor": "–",
        "forget": "0.2 s",
        "learn": "0.3 s",
        "other": "–",
    }
    assert cells(page, "mend", "Where the time goes")["editor"] == "0.1 s"
    assert cells(page, "ft", "How far weights move") == {"mlp.0": "1.25"}
    assert cells(page, "ft", "Besides") == {"task.gsm8k.acc before": "0.5", "task.gsm8k.acc after": "0.25"}


def test_what_was_not_measured_has_no_column_and_no_table():
    page = costs.sections(label_runs([fakes.record("ft"), fakes.record("lora")]))
    for text in ("token", "training", "Where the time goes", "How far weights move", "Besides"):
        assert text not in page


def test_seeds_are_put_together():
    runs = [fakes.record("ft", seed=seed, measures={"m": {"before": 1.0, "after": float(seed)}}) for seed in (1, 3)]
    assert pooled(runs).measures == {"m": {"before": 1.0, "after": 2.0}}
