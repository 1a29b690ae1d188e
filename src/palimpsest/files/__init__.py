"""Files of our own: one way to read them, one way to write them, and the places they are in.

`reading` turns whatever is wrong with a file into the caller's own error, `writing` makes files and folders that appear
complete or not at all, `tensors` does both for safetensors, `places` answers for paths. Nothing here imports torch
before a tensor is read or written.
"""

from palimpsest.files.places import (
    cache_folder,
    expanded,
    hold,
    put_aside,
    require_absent,
    require_apart,
    require_replaceable,
    require_writable,
    taking_turns,
)
from palimpsest.files.reading import (
    FileKind,
    Line,
    decoded,
    json_decoder,
    parse_json,
    parse_toml,
    require_encodable,
    require_shallow,
    said,
    texts_of,
)
from palimpsest.files.regular import content_of, remedy_of, require_readable, require_regular
from palimpsest.files.tensors import Stored, read_tensors, read_texts, shaped, write_tensors
from palimpsest.files.writing import append, new_file, new_folder, short_name, to_json, write_json, write_text

__all__ = [
    "FileKind",
    "Line",
    "Stored",
    "append",
    "cache_folder",
    "content_of",
    "decoded",
    "expanded",
    "hold",
    "json_decoder",
    "new_file",
    "new_folder",
    "parse_json",
    "parse_toml",
    "put_aside",
    "read_tensors",
    "read_texts",
    "remedy_of",
    "require_absent",
    "require_apart",
    "require_encodable",
    "require_readable",
    "require_regular",
    "require_replaceable",
    "require_shallow",
    "require_writable",
    "said",
    "shaped",
    "short_name",
    "taking_turns",
    "texts_of",
    "to_json",
    "write_json",
    "write_tensors",
    "write_text",
]
