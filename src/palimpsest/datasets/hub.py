"""Data sets by their name on the Hugging Face hub: `hf://owner/name`, `hf://owner/name/configuration`, or one file of
them, `hf://owner/name/folder/file.json`, which is read as a local file is: some data sets are files of several schemas.
"""

from __future__ import annotations

import re
from pathlib import Path

from palimpsest.datasets.base import Record
from palimpsest.datasets.reading import ENDINGS, read_records
from palimpsest.errors import ConfigError, DataError

# A pathlib.Path has one slash where the name had two.
_NAME = re.compile(r"hf:/{1,2}(?P<name>[^/]+/[^/]+)(?:/(?P<inside>.+?))?/?")


def is_hub_name(path: str | Path) -> bool:
    """Whether this names a data set of the hub rather than a file."""
    return str(path).startswith("hf:/")


def read_hub(path: str | Path) -> list[Record]:
    """Every record of every split, or of the one file; a record that names no split itself gets that of the hub.

    Raises `ConfigError` when the library that reads the hub is not installed, `DataError` for an invalid name and for
    a data set that cannot be had.
    """
    match = _NAME.fullmatch(str(path))
    if match is None:
        raise DataError(
            "The name of a data set on the hub cannot be read.",
            expected="hf://owner/name, hf://owner/name/configuration or hf://owner/name/folder/file.json",
            found=repr(str(path)),
        )
    name = f"hf://{match['name']}"
    if Path(match["inside"] or "").suffix.lower() in ENDINGS:
        return _one_file(match["name"], match["inside"])
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "Data sets on the hub need another package.",
            expected="the package datasets",
            found="it is not installed",
            remedy="pip install 'palimpsest-lm[hub]'",
        ) from error
    try:
        splits = datasets.load_dataset(match["name"], match["inside"])
        return [
            Record(f"{name} {split}[{index}]", {"split": split, **fields})
            for split, rows in splits.items()
            for index, fields in enumerate(rows)
        ]
    # The library raises errors of a dozen kinds; each of them means that there is nothing to read.
    except Exception as error:
        raise _unreachable(name, error) from error


def _one_file(name: str, file: str) -> list[Record]:
    import huggingface_hub

    try:
        local = huggingface_hub.hf_hub_download(name, file, repo_type="dataset")
    # Here too the errors are of a dozen kinds.
    except Exception as error:
        raise _unreachable(f"hf://{name}/{file}", error) from error
    return read_records(Path(local))


def _unreachable(name: str, error: Exception) -> DataError:
    return DataError(
        "The data set cannot be read from the hub.",
        expected="a data set that can be downloaded or is in the local cache",
        found=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        where=name,
        remedy="check the name and the connection, or download the file and give its path",
    )
