"""Publishing on the hub: a patch, an adapter or an edited model, with a card made from what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.errors import ConfigError, DataError, OutputError
from palimpsest.files import FileKind, to_json
from palimpsest.patches.base import MANIFEST_FILE, TENSORS
from palimpsest.patches.card import CARD, CONTENTS, Contents, Measured, card
from palimpsest.patches.storage import read_manifest
from palimpsest.world import bundled_name

# What may name the base model's folder on this machine, which is nobody's business and of no use elsewhere.
_NAMING_THE_BASE = (MANIFEST_FILE, CONTENTS, "adapter_config.json", "config.json")
_FOLDER = FileKind(
    DataError,
    "There is nothing to publish here.",
    expected="a patch folder, or a folder that `palimpsest apply` wrote",
)


@dataclass(frozen=True)
class Publication:
    """A commit for the hub: files by their path in the repository.

    Arguments:
        repo: the hub id.
        form: what it is, in a word.
        message: of the commit.
        files: place in the repository to a file on this machine, or to bytes of its own.
        is_dataset: whether it is a data set; a model's repository otherwise.
    """

    repo: str
    form: str
    message: str
    files: dict[str, Path | bytes]
    is_dataset: bool = False

    @property
    def card(self) -> str:
        """The card's text."""
        text = self.files[CARD]
        return text.decode() if isinstance(text, bytes) else text.read_text(encoding="utf-8")

    def sizes(self) -> dict[str, int]:
        """Place in the repository to bytes."""
        return {
            place: len(file) if isinstance(file, bytes) else file.stat().st_size for place, file in self.files.items()
        }


def prepare_upload(
    folder: Path, repo: str, *, measured: Measured | None = None, base_model: str | None = None
) -> Publication:
    """Reads a folder of edits and makes its card; needs no network and writes nothing.

    Arguments:
        folder: a patch, or what `palimpsest apply` wrote.
        repo: the hub id to publish under, such as `owner/name`.
        measured: how well the edits hold, for the card.
        base_model: the base model's hub id, where it was edited from a folder.

    Raises `ConfigError` for an id that cannot be one, `PatchError` or `DataError` for a folder of none of these.
    """
    for name in filter(None, (repo, base_model)):
        require_hub_id(name)
    contents = read_contents(folder)
    former, base = contents.base, base_model or bundled_name(contents.base) or contents.base
    if base_model is None and (Path(base).is_absolute() or Path(base).exists()):
        base = Path(base).name
    contents = contents.model_copy(update={"base": base})
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _is_published(path, folder)
    }
    if former != base:
        for place, file in files.items():
            if isinstance(file, Path) and file.name in _NAMING_THE_BASE:
                files[place] = _renamed(file, former, base)
    files[CARD] = card(contents, repo=repo, measured=measured).encode()
    return Publication(repo, contents.form, _message(contents), files)


def require_hub_id(name: str) -> None:
    """Raises `ConfigError` for a text that cannot be a hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError("This cannot be a hub id.", expected="owner/name", found=str(error)) from error


def read_contents(folder: Path) -> Contents:
    """Identifies a folder: a patch, or an adapter or model that `palimpsest apply` wrote.

    Raises `DataError` for another folder, `PatchError` for a patch that cannot be read.
    """
    if (folder / MANIFEST_FILE).is_file() and (folder / TENSORS).is_file():
        manifest = read_manifest(folder)
        fingerprint = manifest.base["weights"] if manifest.base else None
        return Contents(form="patch", base=manifest.model or "unknown", fingerprint=fingerprint, patches=[manifest])
    file = folder / CONTENTS
    if file.is_file():
        return _FOLDER.record(file, Contents)
    found = f"no {MANIFEST_FILE} and no {CONTENTS} in it" if folder.is_dir() else "nothing of that name"
    raise _FOLDER.refused(folder, found)


def publish(publication: Publication, api: Any, *, private: bool = False, overwrite: bool = False) -> str:
    """Makes the repository and puts everything into it in one commit. Returns its address.

    Arguments:
        api: a `huggingface_hub.HfApi`, or what behaves like one.
        private: whether only its owner sees a new repository.
        overwrite: whether the files may be added to a repository that exists.

    Raises `ConfigError` without a token, `OutputError` when the repository exists or the hub refuses or is silent.
    """
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(path_in_repo=place, path_or_fileobj=file if isinstance(file, bytes) else str(file))
        for place, file in publication.files.items()
    ]
    what, kind = "a new repository", {"repo_type": "dataset"} if publication.is_dataset else {}
    try:
        # Asking who we are costs one request and tells a missing token from a missing permission.
        api.whoami()
        url = api.create_repo(publication.repo, private=private, exist_ok=overwrite, **kind)
        what = f"the repository {publication.repo}, which exists and lacks these files"
        api.create_commit(publication.repo, operations, commit_message=publication.message, **kind)
    except Exception as error:  # the client's own errors and those of whatever network library it is built on
        raise _refused(error, publication.repo, what) from error
    return str(url)


def _is_published(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") for part in parts)


def _renamed(file: Path, former: str, base: str) -> bytes:
    """A JSON file in which the base model has another name."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [renamed(entry) for entry in value]
        return base if value == former else value

    return (to_json(renamed(_FOLDER.json(file)), indent=2) + "\n").encode()


def _message(contents: Contents) -> str:
    labels = ", ".join(patch.label for patch in contents.patches)
    return f"{len(contents.edits)} edited fact{'' if len(contents.edits) == 1 else 's'} ({labels})"[:100]


def _refused(error: Exception, repo: str, what: str) -> ConfigError | OutputError:
    from huggingface_hub.errors import LocalTokenNotFoundError

    code = getattr(getattr(error, "response", None), "status_code", None)
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, LocalTokenNotFoundError) or code == 401:
        return ConfigError(
            "The hub does not know who you are.",
            expected="a token that may write: HF_TOKEN in the environment, or the hub's own login",
            found="no token" if isinstance(error, LocalTokenNotFoundError) else "a token that is not valid (any more)",
            remedy="run `hf auth login`, or set HF_TOKEN; --dry-run needs neither",
        )
    if code == 409:
        return OutputError(
            "The repository exists already.",
            expected="a name that is free",
            found=repo,
            remedy="choose another name, or add --overwrite to put these files into it",
        )
    if code == 403:
        return OutputError(
            "The hub does not let you write there.",
            expected=f"a token with write permission for {repo.split('/')[0]}",
            found=first or "403 Forbidden",
            where=repo,
            remedy="make a token that may write, or choose a name of your own",
        )
    return OutputError(
        "Publishing failed.",
        expected=f"the hub to take {what}",
        found=f"{type(error).__name__}: {first}" if first else type(error).__name__,
        where=repo,
        remedy="check the network and run it again"
        + (" with --overwrite" if what != "a new repository" else "; --dry-run shows everything without it"),
    )
