"""What a layer is worth on a pretrained model: MEMIT in three layers that end there, ROME in that one.

    python bench/layer_sweep.py --model pretrained/smollm2 --facts COUNTERFACT --name smollm2 --layers 1,4,8,12,16

COUNTERFACT is a folder with the files that `bench/known_facts.py` names. Facts are of the training split and known to
the model. Result: `bench/results/layer_sweep.json`, one entry a model; docs/tracing.md shows it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import palimpsest as ps
from common import RESULTS
from known_facts import base_texts, batch_edit, known_facts, single_edits
from palimpsest.files import write_text

CONTEXTS = {"given": ["Yesterday I heard that {}", "It is well known. {}"]}


def sweep(model: ps.EditableModel, facts: Any, layers: list[int], singles: int) -> list[dict[str, Any]]:
    """A row for each layer and method."""
    base, rows = base_texts(model, facts), []
    for layer in layers:
        three = list(range(max(0, layer - 2), layer + 1))
        for name, own, edit, some in (
            ("memit", three, batch_edit, facts),
            ("rome", [layer], single_edits, facts[:singles]),
        ):
            start = time.process_time()
            found = edit(model, ps.method(name, layers=own, contexts=CONTEXTS), some, base)
            seconds = round(time.process_time() - start, 1)
            rows.append({"method": name, "layers": own, "n": len(some), **found, "cpu_seconds": seconds})
    return rows


def main() -> None:
    """Adds a model's rows to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--layers", default="1,4,8,12,16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--singles", type=int, default=6)
    options = parser.parse_args()
    model = ps.load(options.model, dtype="bfloat16")
    facts = known_facts(model, options.facts, "train", options.batch)
    rows = sweep(model, facts, [int(layer) for layer in options.layers.split(",")], options.singles)
    file = RESULTS / "layer_sweep.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    record[options.name] = {"num_layers": model.num_layers, "dtype": "bfloat16", "split": "train", "rows": rows}
    write_text(file, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
