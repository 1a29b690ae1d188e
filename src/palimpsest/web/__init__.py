"""The page: ask, edit, undo and take patches away in a browser. Gradio is imported with the page only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
