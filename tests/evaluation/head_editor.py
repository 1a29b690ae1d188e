"""A small editor for the tests of evaluation: gradient descent on the head alone, so fast and exactly repeatable."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import tiny
from palimpsest import DataError, Dataset, EditRequest, Probe, WeightPatch
from palimpsest.evaluation.editor import Editor
from palimpsest.patches.base import Manifest
from palimpsest.patches.weights import Dense


@dataclass(frozen=True)
class Count:
    """A state that can be saved: the number of calls so far."""

    calls: int

    def save(self, path: Path) -> None:
        path.write_text(str(self.calls))

    @classmethod
    def load(cls, path: Path) -> Count:
        return cls(int(path.read_text()))


@dataclass
class HeadEditor(Editor):
    """Trains `lm_head.weight` on the answers, full stop included. Options make it fail, stop, or count."""

    steps: int = 40
    rate: float = 0.5
    name: str = "head"
    failing: tuple[str, ...] = ()
    interrupt_at: int | None = None
    kill_at: int | None = None
    log: Path | None = None
    carries_state: bool = False
    saves_state: bool = False
    calls: list[tuple[str, ...]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)

    def resolve(self, model: Any) -> tuple[Any, Any]:
        return {"steps": self.steps, "rate": self.rate}, None

    def edit(self, model: Any, requests: Any, state: Any = None, *, progress: Any = None) -> Any:
        self.calls.append(tuple(request.id for request in requests))
        self.states.append(state)
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(f"edit {' '.join(self.calls[-1])}\n")
        if self.kill_at == len(self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.interrupt_at == len(self.calls):
            raise KeyboardInterrupt
        if any(request.id in self.failing for request in requests):
            raise DataError("This edit cannot be made.")
        encoded = [model.encode(request.prompt, f"{request.target_new}.") for request in requests]
        batch = model.batch([row.ids for row in encoded])
        rows, columns, labels = model.answer_places(encoded, batch)
        with torch.no_grad():
            hidden = model.module.base_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state[rows, columns]
            head = model.module.get_output_embeddings()
            weight, start = head.weight.clone(), head.weight.clone()
            bias = 0 if getattr(head, "bias", None) is None else head.bias
            for _ in range(self.steps):
                error = (hidden @ weight.T + bias).softmax(-1)
                error[torch.arange(len(labels)), labels] -= 1
                weight -= self.rate * error.T @ hidden / len(labels)
            manifest = Manifest(label=self.name, edits=[request.to_dict() for request in requests])
            patch = WeightPatch({"lm_head.weight": Dense(weight - start)}, manifest)
        diagnostics = SimpleNamespace(seconds={"targets": 0.25, "total": 0.25})
        after = len(self.calls) if self.carries_state else None
        if self.saves_state:
            after = Count(1 + (state.calls if state else 0))
        return SimpleNamespace(patch=patch, state=after, diagnostics=diagnostics)

    State = Count


SENTENCES = ("People who lived in Rome.", "It was written long ago.", "Who wrote it?")


def facts(n: int = 4) -> Dataset:
    """Made-up edits with probes of several kinds."""
    requests = []
    for index, (prompt, subject, old, new) in enumerate((tiny.FACTS * 8)[:n]):
        round_ = index // len(tiny.FACTS)
        prompt, subject = (prompt, subject) if not round_ else (f"{prompt} in year {round_}", subject)
        requests.append(
            EditRequest(
                prompt,
                new,
                subject=subject,
                target_old=old,
                fact=f"{subject}|{round_}",
                id=f"e{index}",
                probes=(
                    Probe("generality", f"They say: {prompt}", new),
                    Probe("locality.neighborhood", f"The capital of Land {index} is", "Rome"),
                    Probe("locality.out_of_scope", f"Who wrote book {index}?"),
                    Probe("portability.one_hop", f"The country around {new} is", "Oslo"),
                ),
            )
        )
    return Dataset("made-up", tuple(requests), neutral_text=SENTENCES)
