"""An endpoint as OpenAI's clients know it: one model, and patches chosen by each request."""

from palimpsest.serving.app import Limits, build_app
from palimpsest.serving.engine import Engine
from palimpsest.serving.names import Catalogue, NamedPatch, patch_name
from palimpsest.serving.server import Address, open_socket, run

__all__ = ["Address", "Catalogue", "Engine", "Limits", "NamedPatch", "build_app", "open_socket", "patch_name", "run"]
