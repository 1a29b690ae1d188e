"""The command line as its tests use it: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from palimpsest.cli import main

# What makes a random model learn four facts by heart in half a second, and stop after them.
LEARN = (
    "-o",
    "parameters=all",
    "-o",
    "spare=false",
    "-o",
    "append_eos=true",
    "-o",
    "epochs=60",
    "-o",
    "learning_rate=5e-3",
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def learn() -> tuple[str, ...]:
    return LEARN


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, a file of edits, and a patch of the first model that really holds."""
    place = tmp_path_factory.mktemp("workplace")
    tiny.tiny_folder(place / "model")
    tiny.tiny_folder(place / "other", seed=3)
    records = [request.to_dict() for request in tiny.requests()]
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    code = main(
        ["edit", str(place / "model"), "--method", "ft", "--edits", str(place / "facts.jsonl")]
        + ["--out", str(place / "patch"), "--json", *LEARN]
    )
    assert code == 0
    return place
