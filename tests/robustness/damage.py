"""Damage to files, as data: drawn with a seed, done to a file, written down for those that broke something.

A damage is a JSON list: its name and its arguments. So one that was found once can be done again by a test.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Damage = list[Any]
# JSON texts, for some are no values: a text with half a character, NaN, what is nested too deep, a name given twice.
ODD = (
    "null", "true", "0", "-1", "1.5", "1" + "0" * 30, "1" + "0" * 5_000, "1e400", "NaN", "-Infinity", '""', '"x"',
    '" \\u0000 "', '"\\ud800"', '"' + "n" * 300 + '"', "[]", "[5]", "[null]", "{}", '{"a": "b"}', '{"a": 1, "a": 2}',
    "[" * 3_000, "[" * 150 + "]" * 150, '"../../outside"', '"<script>"',
)  # fmt: skip
TENSORS = ("drop", "rename", "more", "flat", "turned", "wider", "narrow", "scalar", "none", "nan", "inf", "huge")
DTYPES = ("float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn")
BYTES = ("cut", "flip", "empty", "blank", "mark", "invalid", "zeros", "folder", "gone", "more", "doubled")
DIGESTS = {"patch.safetensors": "manifest.json", "editor.safetensors": "editor.json"}


def draw(file: Path, rng: random.Random) -> Damage:
    """A damage for a file, by what it is."""
    if rng.random() < 0.15:
        return ["bytes", rng.choice(BYTES), rng.random()]
    if file.suffix == ".safetensors":
        return _for_tensors(file, rng)
    if file.suffix == ".json":
        return ["json", *_in(json.loads(file.read_text()), rng)]
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        number = rng.randrange(len(lines))
        what = rng.choice(("line", "drop", "again", "json", "json", "json"))
        if what == "json":
            return ["line", number, *_in(json.loads(lines[number]), rng)]
        return ["whole line", number, what, rng.choice(ODD)]
    return [
        "text",
        rng.random(),
        rng.choice(("", "[", "{", "\ud800", "\0", "= 1", '"', "9" * 5_000, "[" * 3_000, "nan")),
    ]


def _for_tensors(file: Path, rng: random.Random) -> Damage:
    with safe_open(file, "pt") as stored:
        names, texts = sorted(stored.keys()), stored.metadata() or {}
    if texts and rng.random() < 0.4:
        name = rng.choice(sorted(texts))
        try:
            return ["texts", name, *_in(json.loads(texts[name]), rng)]
        except ValueError:
            return ["texts", name, [], rng.choice(ODD)]
    if not names:
        return ["bytes", rng.choice(BYTES), rng.random()]
    what = rng.choice((*TENSORS, "dtype", "dtype"))
    return ["tensor", rng.choice(names), what, rng.choice(DTYPES)]


def _in(value: Any, rng: random.Random) -> tuple[list[Any], str]:
    """Where in a JSON value, and what stands there instead; the deeper places are as likely as the first."""
    paths = list(_paths(value, []))
    path = rng.choice(paths) if rng.random() < 0.9 else []
    return path, rng.choice((*ODD, "DROP", "DROP", "RENAME", "MORE"))


def _paths(value: Any, above: list[Any]) -> Any:
    yield above
    entries = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, one in entries:
        yield from _paths(one, [*above, key])


def do(damage: Damage, file: Path) -> None:
    """Does a damage to a file; the checksum of tensors is made right again, so that what is behind it is read."""
    kind, *given = damage
    if kind == "bytes":
        _to_bytes(file, *given)
    elif kind == "text":
        text, at = file.read_text(), int(given[0] * len(file.read_text()))
        file.write_bytes((text[:at] + given[1] + text[at:]).encode("utf-8", "surrogatepass"))
    elif kind == "json":
        file.write_text(_with(json.loads(file.read_text()), *given))
    elif kind in ("line", "whole line"):
        _to_line(file, kind, *given)
    elif kind == "texts":
        tensors, texts = _read(file)
        try:
            texts[given[0]] = _with(json.loads(texts[given[0]]), *given[1:])
        except ValueError:
            texts[given[0]] = given[2]
        save_file(tensors, file, texts)
    else:
        tensors, texts = _read(file)
        save_file(_changed(tensors, *given), file, texts or None)
        record = file.parent / DIGESTS.get(file.name, "none")
        if record.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            record.write_text(json.dumps({**json.loads(record.read_text()), "tensors_sha256": digest}))


def _to_bytes(file: Path, what: str, share: float) -> None:
    content = file.read_bytes()
    at = int(share * len(content))
    if what in ("folder", "gone"):
        file.unlink()
        if what == "folder":
            file.mkdir()
        return
    made = {
        "cut": content[:at],
        "flip": content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :] if content else b"\xff",
        "empty": b"",
        "blank": b" \n",
        "mark": b"\xef\xbb\xbf" + content,
        "invalid": content[:at] + b"\xff\xc3\x28" + content[at:],
        "zeros": b"\0" * len(content),
        "more": content + b"}]",
        "doubled": content + content,
    }[what]
    file.write_bytes(made)


def _to_line(file: Path, kind: str, number: int, *given: Any) -> None:
    lines = file.read_text().splitlines(keepends=True)
    number = min(number, len(lines) - 1)
    if kind == "line":
        lines[number] = _with(json.loads(lines[number]), *given) + "\n"
    else:
        what, odd = given
        lines[number] = {"line": f"{odd}\n", "drop": "", "again": 2 * lines[number]}[what]
    file.write_text("".join(lines))


def _with(value: Any, path: list[Any], odd: str) -> str:
    """The JSON text of a value with something else at a place."""
    token = "\u00abHERE\u00bb"
    if not path:
        return odd if odd not in ("DROP", "RENAME", "MORE") else "{}"
    place = value
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    if odd == "DROP":
        del place[last]
    elif odd == "RENAME":
        if isinstance(place, dict):
            place["renamed"] = place.pop(last)
        else:
            place[last] = "renamed"
    elif odd == "MORE":
        if isinstance(place, dict):
            place["one_more"] = 1
        else:
            place.append("one more")
    else:
        place[last] = token
    return json.dumps(value).replace(json.dumps(token), odd)


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, dict(stored.metadata() or {})  # noqa: SIM118


def _changed(tensors: dict[str, torch.Tensor], name: str, what: str, dtype: str) -> dict[str, torch.Tensor]:
    one = tensors.pop(name)
    if what == "drop":
        return tensors
    if what == "rename":
        return {**tensors, f"{name}.renamed": one}
    if what == "more":
        return {**tensors, name: one, "one.more": torch.ones(2, 2)}
    filled = {"nan": float("nan"), "inf": float("inf"), "huge": 1e38}
    if what in filled:
        made = one.float().clone()
        made.reshape(-1)[:1] = filled[what]
    else:
        made = {
            "flat": lambda: one.reshape(-1),
            "turned": lambda: one.t() if one.ndim == 2 else one[None],
            "wider": lambda: torch.cat([one, one], -1) if one.ndim else one[None],
            "narrow": lambda: one[..., :-1] if one.ndim else one[None],
            "scalar": lambda: torch.tensor(1.0),
            "none": lambda: one[:0] if one.ndim else one[None],
            "dtype": lambda: one.to(getattr(torch, dtype)),
        }[what]()
    return {**tensors, name: made.contiguous()}


def copied(source: Path, to: Path) -> Path:
    """A fresh copy of a file or folder, in place of whatever is there."""
    if to.is_dir():
        shutil.rmtree(to)
    elif to.exists():
        to.unlink()
    return Path(shutil.copytree(source, to) if source.is_dir() else shutil.copy(source, to))
