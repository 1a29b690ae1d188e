"""The command line. `main` is the entry point; everything heavy is imported inside the commands."""

from palimpsest.cli.app import main

__all__ = ["main"]
