"""`push` puts a patch, an adapter or an edited model on the hub, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.errors import ConfigError, DataError
from palimpsest.files import expanded

if TYPE_CHECKING:
    from palimpsest.patches import Measured, Publication

EXAMPLES = (
    "palimpsest push my-patch me/world-in-2026 --dry-run",
    "palimpsest push my-patch me/world-in-2026 --private --record verified.json",
    "palimpsest push questions me/my-questions --private",
)
PANEL = terminal.EDITING


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A patch, what `palimpsest apply` wrote, or what `palimpsest portability build` wrote.",
            show_default=False,
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: owner/name.", show_default=False)],
    record: Annotated[
        Path | None,
        typer.Option("--record", help="Measured numbers for the card: `verify --json` in a file, or a run's folder."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ID", help="The base model's hub id, where a folder of it was edited."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you see a new repository.")] = False,
    overwrite: inputs.OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and the files; needs no network and no token.")
    ] = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Publish a patch, an adapter, an edited model or the questions about one's own edits on the Hugging Face hub.

    The card is made from the manifest. Of the questions, those that people accepted go into a data set.
    """
    with terminal.status("reading"):
        terminal.quiet_libraries()
        from huggingface_hub import HfApi

        from palimpsest.patches import publish

        publication = _prepared(expanded(folder), repo, record, base_model)
    url = None
    if not dry_run:
        with terminal.status(f"sending {len(publication.files)} files to {repo}"):
            url = publish(publication, HfApi(), private=private, overwrite=overwrite)
        terminal.wrote(url)
    sizes = publication.sizes()
    if as_json:
        described = {
            "repo": repo,
            "form": publication.form,
            "dry_run": dry_run,
            "private": private,
            "url": url,
        }
        terminal.emit_json({**described, "files": sizes, "card": publication.card})
        return
    from palimpsest.showing import size

    if dry_run:
        terminal.say(publication.card)
    terminal.print_table(("file", "size"), [(place, size(number)) for place, number in sizes.items()])
    terminal.say(f"{'would go' if dry_run else 'sent'} to {url or repo}: {size(sum(sizes.values()))}")


def _prepared(folder: Path, repo: str, record: Path | None, base_model: str | None) -> Publication:
    from palimpsest.datasets.portability import is_build, prepare_questions
    from palimpsest.patches import prepare_upload

    if not is_build(folder):
        measured = None if record is None else read_measured(expanded(record))
        return prepare_upload(folder, repo, measured=measured, base_model=base_model)
    if record is not None or base_model is not None:
        raise ConfigError(
            "Questions about edits have no measured numbers and no base model.",
            expected="no --record and no --base-model",
            found="--record" if record is not None else "--base-model",
            where=str(folder),
            remedy="leave it out; these options are for patches and what `palimpsest apply` wrote",
        )
    return prepare_questions(folder, repo)


def read_measured(path: Path) -> Measured:
    """The numbers of a run's folder, or of a file that `verify --json` (or `eval --json`) wrote.

    Raises `DataError` for anything else, `OutputError` for a folder without a run.
    """
    from palimpsest.files import FileKind
    from palimpsest.patches import Measured

    if path.is_dir():
        from palimpsest.evaluation import load_run

        run = load_run(path)
        spec = run.specification
        answers = {
            one.prompt: (one.shown_before(), one.shown_after()) for one in run.probes if one.kind == "reliability"
        }
        source = f"Measured with {spec.method} on {spec.num_edits} edits of {spec.dataset}, protocol {spec.protocol}."
        return Measured(source, answers, run.to_json()["scores"])
    kind = FileKind(
        DataError,
        "There are no measured numbers here.",
        expected="a file that `palimpsest verify --json` wrote, or a folder that `palimpsest eval --out` wrote",
    )
    found = kind.record(path, _measured_file())
    source = f"The patch's own tests, {found.num_edits} edits." if found.patch else "Measured by `eval`."
    answers = {one.prompt: (one.before, one.after) for one in found.answers}
    scores = {name: {metric: vars(one) for metric, one in metrics.items()} for name, metrics in found.scores.items()}
    return Measured(source, answers, scores)


def _measured_file() -> Any:
    """The pydantic model of what `verify --json` and `eval --json` print, as far as a card shows it."""
    from pydantic import BaseModel

    class Answer(BaseModel):
        prompt: str
        before: str | None
        after: str | None

    class Score(BaseModel):
        mean: float | None
        low: float
        high: float
        n: int

    class Found(BaseModel):
        patch: str | None = None
        num_edits: int
        answers: list[Answer] = []
        scores: dict[str, dict[str, Score]]

    return Found
