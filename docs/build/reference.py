"""Generated parts that come from the code: options of methods, help of commands, the table of model families."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blocks import table

if TYPE_CHECKING:
    from palimpsest import Architecture


def options(method: str) -> str:
    """The options of a method with their defaults and meaning, from its config class."""
    from palimpsest.methods.catalogue import METHODS

    row = METHODS[method]
    return table(["option", "default", "meaning"], _option_rows(row.load().Config, row.options))


def training(method: str) -> str:
    """The options of training a method's editor with their defaults and meaning, from their class."""
    from palimpsest.methods.catalogue import METHODS

    return table(["option", "default", "meaning"], _option_rows(METHODS[method].load().Training, {}))


def _option_rows(config: Any, chosen: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """A row for every option; those of options inside options by their dotted names."""
    comments, rows = _comments(config), []
    for name, entry in config.model_fields.items():
        default = chosen.get(name, entry.get_default(call_default_factory=True))
        if hasattr(entry.annotation, "model_fields"):
            inner = entry.get_default(call_default_factory=True).model_dump() | dict(chosen.get(name, {}))
            rows += _option_rows(entry.annotation, inner, f"{prefix}{name}.")
        else:
            meaning = comments.get(name, "").replace("|", r"\|")
            rows.append([f"`{prefix}{name}`", f"`{json.dumps(default)}`", meaning])
    return rows


def _comments(config: type) -> dict[str, str]:
    """The text under each field of a config class and its bases, as the source has it."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not owner.__module__.startswith("palimpsest"):
            continue
        (body,) = (node.body for node in ast.parse(inspect.getsource(owner)).body if isinstance(node, ast.ClassDef))
        for field, after in zip(body, body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(inspect.cleandoc(str(after.value.value)).split())
    return found


# All of them from one process: to start one costs more than to write a help page.
_ASKING = """
import contextlib, io, json, sys
import typer
from palimpsest.cli import main
from palimpsest.cli.app import app

def pages(command, words):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = main([*words, "--help"])
    if code:
        sys.exit(code)
    yield words, text.getvalue()
    for name, one in getattr(command, "commands", {}).items():
        yield from pages(one, [*words, name])

json.dump(list(pages(typer.main.get_command(app), [])), sys.stdout)
"""


def command_help(_argument: str) -> str:
    """The help text of every command, in the order of the first one's."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    asking = [sys.executable, "-c", _ASKING]
    done = subprocess.run(asking, capture_output=True, text=True, check=True, env=environment)
    parts = []
    for words, text in json.loads(done.stdout):
        lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        parts.append(f"## {' '.join(['palimpsest', *words])}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def families(_argument: str) -> str:
    """Every row of the site table: for which models it is, how they are laid out, what is to be known."""
    from palimpsest.models.sites.table import architectures

    rows = []
    for row in architectures():
        settings = [f"`{name} = {value}`" for name, value in row.when.items() if name != "is_encoder_decoder"]
        types = ", ".join(f"`{kind}`" for kind in row.model_types)
        types += f" with {', '.join(settings)}" if settings else ""
        rows.append([f"`{row.name}`", types, _mlp(row), _attention(row), "; ".join(_notes(row))])
    return table(["row", "`model_type`", "MLP", "attention", "to know"], rows)


def _mlp(row: Architecture) -> str:
    if row.is_mixture:
        return "down, of all experts side by side" if "mlp.down" in row.sites else "experts: no matrix of one MLP"
    names = [name for name in ("up", "gate", "down") if f"mlp.{name}" in row.sites]
    fused = [name for name in names if row.sites[f"mlp.{name}"].is_slice]
    return ", ".join(names) + (f" ({' and '.join(fused)} fused)" if fused else "")


def _attention(row: Architecture) -> str:
    fused = row.sites["attn.q"].is_slice
    cross = ", and to the encoder likewise" if "cross.q" in row.sites else ""
    return ("q, k, v fused, out" if fused else "q, k, v, out") + cross


def _notes(row: Architecture) -> list[str]:
    found = []
    if row.encoder is not None:
        found.append("encoder and decoder")
    if not row.mlp_writes_residual:
        found.append("a norm or a factor stands behind the MLP")
    missing = [name for name in ("mlp", "attn") if name not in row.sites]
    if missing:
        found.append(f"no site {' or '.join(f'`{name}`' for name in missing)}: no module gives that alone")
    return found
