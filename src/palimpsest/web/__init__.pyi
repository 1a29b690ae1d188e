from .exporting import FORMS, export
from .form import EditForm
from .page import build_page
from .served import serve_page
from .workbench import Asked, Check, Edited, EditingDesk, Workbench

__all__ = [
    "FORMS",
    "Asked",
    "Check",
    "EditForm",
    "Edited",
    "EditingDesk",
    "Workbench",
    "build_page",
    "export",
    "serve_page",
]
