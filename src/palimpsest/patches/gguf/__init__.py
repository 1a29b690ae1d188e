"""Edits in GGUF, the files of llama.cpp and Ollama: an edited copy of a file, an adapter for it, and the way back."""

from palimpsest.patches.gguf.adapter import AdapterFile, write_gguf_adapter
from palimpsest.patches.gguf.editing import EditedFile, WrittenTensor, write_gguf
from palimpsest.patches.gguf.undoing import undo_gguf

__all__ = ["AdapterFile", "EditedFile", "WrittenTensor", "undo_gguf", "write_gguf", "write_gguf_adapter"]
