"""Checkpoints: from a name to a transformers model and its tokenizer, with every file looked at before it is used."""

from palimpsest.checkpoints.adapter_folders import adapter_base, is_adapter, merge_adapter, refuse_adapted
from palimpsest.checkpoints.config_files import check_files
from palimpsest.checkpoints.gguf_files import check_gguf, from_gguf
from palimpsest.checkpoints.gguf_header import GGUF, Header, is_gguf, read_header
from palimpsest.checkpoints.gguf_tensors import (
    Array,
    GgufLayout,
    StoredPlace,
    bits,
    expanded_values,
    stored_values,
    type_name,
)
from palimpsest.checkpoints.gguf_writing import OUR_KEYS, NewTensor, Segment, WayBack, write_edited, write_original
from palimpsest.checkpoints.locating import locate
from palimpsest.checkpoints.pretrained import from_pretrained, refuse_nan, require_complete
from palimpsest.checkpoints.refusals import refused_by_transformers

__all__ = [
    "GGUF",
    "OUR_KEYS",
    "Array",
    "GgufLayout",
    "Header",
    "NewTensor",
    "Segment",
    "StoredPlace",
    "WayBack",
    "adapter_base",
    "bits",
    "check_files",
    "check_gguf",
    "expanded_values",
    "from_gguf",
    "from_pretrained",
    "is_adapter",
    "is_gguf",
    "locate",
    "merge_adapter",
    "read_header",
    "refuse_adapted",
    "refuse_nan",
    "refused_by_transformers",
    "require_complete",
    "stored_values",
    "type_name",
    "write_edited",
    "write_original",
]
