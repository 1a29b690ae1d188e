"""What is read by commands that look at something that was edited, asked or judged: `inspect`, `assess`, `judge`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from unittest import mock

import tiny
from chat_server import says, serving
from robustness.commands import Kind
from robustness.foreign import ANSWER

if TYPE_CHECKING:
    from robustness.workshop import Workshop

PROMPT = "The capital of France is"


def add(shop: Workshop, is_wanted: Callable[..., bool]) -> None:
    """Adds these kinds to a workshop."""
    for names, make in {
        ("inspected",): _inspected,
        ("distractors",): _distractors,
        ("candidates",): _candidates,
        ("answers",): _answers,
        ("patch",): _experts,
    }.items():
        if is_wanted(*names):
            make(shop)


def _inspecting(edited: object, base: object) -> tuple[str, ...]:
    return ("inspect", str(edited), "--base", str(base), "--vocabulary", "20")


def _inspected(shop: Workshop) -> None:
    """An edited model, its base, and a patch, each beside the whole other one."""
    edited, model, patch = shop.place / "inspected", shop.model, shop.place / "patch-memit"
    shop.made("apply", model, patch, "--out", edited)
    shop.kinds["inspected model"] = Kind(
        edited, ((*_inspecting("IT", model), "--out", "OUT"), _inspecting("IT", model))
    )
    shop.kinds["inspected base"] = Kind(model, (_inspecting(edited, "IT"), _inspecting(patch, "IT")))
    for method in ("memit", "grace"):
        shop.kinds[f"inspected {method}"] = Kind(shop.place / f"patch-{method}", (_inspecting("IT", model),))


def _candidates(shop: Workshop) -> None:
    file = shop.place / "candidates.txt"
    file.write_text("France\nItaly\n\nAnna Keller\n")
    command = ("inspect", str(shop.place / "patch-memit"), "--base", str(shop.model), "--vocabulary", "5")
    shop.kinds["candidates"] = Kind(file, ((*command, "--candidates", "IT"),))


def _distractors(shop: Workshop) -> None:
    file = shop.place / "distractors.json"
    first, second = tiny.requests(2)
    file.write_text(json.dumps({first.prompt: ["Rome", "Lima"], second.id: ["Oslo"]}))
    command = ("assess", str(shop.model), "--facts", str(shop.facts), "--distractors", "IT", "--out", "OUT")
    shop.kinds["distractors"] = Kind(file, (command,))


def _answers(shop: Workshop) -> None:
    """What a judge said and a model proposed, kept in the cache. Later nobody answers what has to be asked again."""
    cache, run_folder, out = shop.place / "cache-of-answers", str(shop.place / "run-single"), shop.place / "proposed"
    asked = ("--endpoint-model", "m", "--retries", "0", "--timeout", "5")
    building = ("portability", "build", str(shop.facts), "--model", str(shop.model), "--generator-model", "m")
    with mock.patch.dict(os.environ, {"PALIMPSEST_CACHE": str(cache)}), serving(says("correct")) as server:
        judging = ("judge", run_folder, "--endpoint", server.url, *asked)
        shop.made(*judging)
        server.default = says(json.dumps(ANSWER))
        proposing = (*building, "--generator", server.url, *asked[2:])
        shop.made(*proposing, "--out", out)
    reading = ((*judging, "--out", "OUT"), (*proposing, "--out", "OUT"))
    named = {"PALIMPSEST_CACHE": "IT"}
    shop.kinds["answers"] = Kind(cache, reading, is_changed=True, environment=named)


def _experts(shop: Workshop) -> None:
    """A patch of a mixture's experts, whose changes have three axes."""
    model, patch = tiny.tiny_folder(shop.place / "experts", "qwen3_moe"), shop.place / "patch-experts"
    words = ["--preset", "none", "--edits", str(shop.facts), *shop.arguments("memit", None)]
    shop.made("edit", model, "--method", "memit", *words, "--out", patch)
    reading = (("ask", str(model), PROMPT, "--patch", "IT", "--max-new-tokens", "3"), ("verify", str(model), "IT"),
               ("apply", str(model), "IT", "--out", "OUT"))  # fmt: skip
    shop.kinds["patch experts"] = Kind(patch, reading)
