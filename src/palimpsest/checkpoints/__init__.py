"""Checkpoints: from a name to a transformers model and its tokenizer, with every file looked at before it is used."""

from palimpsest.checkpoints.adapter_folders import adapter_base, is_adapter, merge_adapter, refuse_adapted
from palimpsest.checkpoints.config_files import check_files
from palimpsest.checkpoints.gguf_files import from_gguf
from palimpsest.checkpoints.gguf_header import is_gguf
from palimpsest.checkpoints.locating import locate
from palimpsest.checkpoints.pretrained import from_pretrained, refuse_nan, require_complete
from palimpsest.checkpoints.refusals import refused_by_transformers

__all__ = [
    "adapter_base",
    "check_files",
    "from_gguf",
    "from_pretrained",
    "is_adapter",
    "is_gguf",
    "locate",
    "merge_adapter",
    "refuse_adapted",
    "refuse_nan",
    "refused_by_transformers",
    "require_complete",
]
