"""One self-contained page out of runs. Nothing here ever touches a model."""

from palimpsest.report.definitions import LOWER_IS_BETTER, METRICS, label
from palimpsest.report.exports import write_tables
from palimpsest.report.heat_maps import draw_trace, labelled_rows, save_trace
from palimpsest.report.html import build_report
from palimpsest.report.settings import group
from palimpsest.report.tables import ReportRun, label_runs, metrics
from palimpsest.report.tracking import log_records, require_trackers
from palimpsest.report.training_curves import save_curve

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "ReportRun",
    "build_report",
    "draw_trace",
    "group",
    "label",
    "label_runs",
    "labelled_rows",
    "log_records",
    "metrics",
    "require_trackers",
    "save_curve",
    "save_trace",
    "write_tables",
]
