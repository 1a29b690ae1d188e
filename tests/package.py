"""What is released, tried: sizes, an empty environment, and the demo in it. `make dist` runs this; it takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LARGEST = 25_000_000


def main(folder: str) -> int:
    """Tries the wheel in a folder; returns the exit code."""
    built = sorted(Path(folder).resolve().iterdir())
    kinds = [path.name.rpartition(".")[2] for path in built]
    if kinds != ["whl", "gz"]:
        print(f"expected a wheel and an archive of the source, found {[path.name for path in built]}")
        return 1
    for path in built:
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    if too_large := [path.name for path in built if path.stat().st_size >= LARGEST]:
        print(f"larger than {LARGEST:,} bytes: {', '.join(too_large)}")
        return 1
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as place:
        venv.create(f"{place}/venv", with_pip=True)
        for command in (
            ["pip", "install", "--quiet", "--disable-pip-version-check", *torch_first()],
            ["pip", "install", "--quiet", "--disable-pip-version-check", str(built[0])],
            ["palimpsest", "--version"],
            ["palimpsest", "demo", "--out", "demo"],
        ):
            done = subprocess.run([f"{place}/venv/bin/{command[0]}", *command[1:]], cwd=place, env=environment)
            if done.returncode:
                print(f"failed: {' '.join(command)}")
                return 1
        report = Path(place, "demo", "report.html")
        print(f"the demo's report: {report.stat().st_size:,} bytes")
    return 0


def torch_first() -> list[str]:
    """The release of torch that the tests run with: alone, so that an index of CPU builds is not mixed with others."""
    lines = Path(__file__).parents[1].joinpath("constraints.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("torch==")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
