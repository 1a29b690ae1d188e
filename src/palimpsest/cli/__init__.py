"""The command line. `main` is the entry point; everything heavy is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from palimpsest.cli.surroundings import heeding_signals, safe_output, share_the_cores

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    0 is success, 1 a failed test or verification, 2 bad input, 129, 130 and 143 an end from outside. Where only the
    printing failed, it is 0 for a command that has made what it was to make, or whose answer is its exit code, and 2
    for one whose answer is what it prints.
    """
    if arguments is None:
        share_the_cores()
    with heeding_signals(is_program=arguments is None), safe_output() as out:
        try:
            from palimpsest.cli.app import main as run

            code = run(arguments)
        except KeyboardInterrupt:
            code = 130
            sys.stderr.write("Interrupted. What was half written has been removed.\n")
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 2
        out.flush()
        if out.failure is not None and code == 0:
            if not out.made:
                code = 2
            kept = f"; {' and '.join(out.made)} is whole" if out.made else ""
            sys.stderr.write(f"Error: The result could not be printed: {out.failure}{kept}.\n")
    return code
