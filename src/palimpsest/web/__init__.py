"""The page: ask, edit, undo and take patches away in a browser."""

from palimpsest.web.page import build_page, serve_page
from palimpsest.web.workbench import Asked, Desk, Edited, Fact, Workbench

__all__ = ["Asked", "Desk", "Edited", "Fact", "Workbench", "build_page", "serve_page"]
