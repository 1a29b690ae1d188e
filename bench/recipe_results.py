"""What a run of `palimpsest bench` came to, as a small file to commit.

    python bench/recipe_results.py results/*          every folder of results, after `make bench`

Of each folder one file, `bench/results/recipes/NAME.json`: for every unit what it was, whether it came to a good end
(`ok`, `failed`, `refused`; `cancelled` where the run was stopped before), its scores with intervals, and what it cost.
Answers and probes stay in the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common import RESULTS
from palimpsest.benchmark.folder import DONE, PLAN, RUN, UNITS
from palimpsest.files import write_text

KEPT = (
    "seconds",
    "seconds_per_edit",
    "peak_memory_bytes",
    "patch_bytes",
    "perplexity",
    "measures",
    "training",
    "counts",
)


def summary(folder: Path) -> dict[str, Any]:
    """A folder of results in short."""
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    rows = [_row(folder, address, labels) for address, labels in plan["units"].items()]
    return {
        "recipe": plan["recipe"]["name"],
        "palimpsest": plan["palimpsest"],
        "updated": plan["updated"],
        **_conditions(folder),
        "states": {
            state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(row["state"] for row in rows)
        },
        "rows": rows,
    }


def _row(folder: Path, address: str, labels: dict[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in labels.items() if key != "identity"}
    file = folder / DONE / f"{address}.json"
    if not file.exists():
        return {**row, "state": "cancelled"}
    done = json.loads(file.read_text(encoding="utf-8"))["finished"]
    result = done["result"]
    row |= {"state": done["state"], "unit_seconds": done["seconds"]}
    if done["error"]:
        row["error"] = done["error"].splitlines()[0]
    row["scores"] = result.get("scores", {})
    row |= {key: result[key] for key in KEPT if result.get(key) is not None}
    row |= {key: result[key] for key in ("immediate", "checkpoints") if result.get(key)}
    return row


def _conditions(folder: Path) -> dict[str, Any]:
    """Versions and machine, as the first run has them."""
    for run in sorted(folder.glob(f"{UNITS}/*/{RUN}")):
        specification = json.loads(run.read_text(encoding="utf-8"))["specification"]
        return {key: specification[key] for key in ("versions", "hardware")}
    return {}


def _rounded(value: Any) -> Any:
    """Numbers to four figures: the intervals are wider."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def written(record: dict[str, Any]) -> str:
    """The record as JSON, one line a unit."""
    rows = [json.dumps(_rounded(row), ensure_ascii=False) for row in record["rows"]]
    head = json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1, ensure_ascii=False)
    return head.removesuffix("\n}") + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"


def main() -> None:
    """Writes one file for each folder of results that is given; other paths are passed over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS / "recipes")
    options = parser.parse_args()
    folders = [one for one in options.folders if (one / PLAN).is_file()]
    if not folders:
        sys.exit(f"none of these is a folder of results: {', '.join(map(str, options.folders))}")
    for folder in folders:
        record = summary(folder)
        write_text(options.out / f"{record['recipe']}.json", written(record))
        print(f"{options.out / record['recipe']}.json: {record['states']}")


if __name__ == "__main__":
    main()
