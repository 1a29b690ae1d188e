"""The command line. `main` is the entry point; everything heavy is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code, see `palimpsest.cli.app.main`; 130 for an early interrupt."""
    try:
        from palimpsest.cli.app import main as run

        return run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. What was half written has been removed.\n")
        return 130
