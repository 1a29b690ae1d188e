"""One self-contained page out of runs. Nothing here ever touches a model."""

from palimpsest.report.html import build_report

__all__ = ["build_report"]
