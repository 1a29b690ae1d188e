from .exporting import FORMS, export
from .page import build_page, serve_page
from .workbench import Asked, Check, Desk, Edited, Fact, Workbench

__all__ = [
    "FORMS",
    "Asked",
    "Check",
    "Desk",
    "Edited",
    "Fact",
    "Workbench",
    "build_page",
    "export",
    "serve_page",
]
