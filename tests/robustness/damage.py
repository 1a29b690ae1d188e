"""Damage to files, as data: drawn with a seed, done to a file, written down for those that broke something.

A damage is a JSON list: its name and its arguments. So one that was found once can be done again by a test.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shutil
import tomllib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from robustness.places import draw_bytes, draw_number, to_bytes, to_number

Damage = list[Any]
# JSON texts, for some are no values: a text with half a character, NaN, what is nested too deep, a name given twice.
ODD = (
    "null", "true", "0", "-1", "1.5", "1" + "0" * 30, "1" + "0" * 5_000, "1e400", "NaN", "-Infinity", '""', '"x"',
    '" \\u0000 "', '"\\ud800"', '"' + "n" * 300 + '"', "[]", "[5]", "[null]", "{}", '{"a": "b"}', '{"a": 1, "a": 2}',
    "[" * 3_000, "[" * 150 + "]" * 150, '"../../outside"', '"<script>"',
    "false", "1", "7", "-0.0", "1e308", "1e-400", "9007199254740993", "2147483648", "-9223372036854775809", "1e3",
    '"0"',
    '"null"', '"True"', '" "', '"\\n"', '"{}"', '"{0.__class__}"', '"{subject}"', '"%s%n"', '"\\u202ex"', '"\\u0301"',
    '"e\\u0301"', '"\\ud83d\\ude00"', '"\\u200b"', '"\\ufeff"', '"' + "word " * 20_000 + '"', '"' + "[" * 300 + '"',
    '"<|endoftext|>"', '"=cmd()"', '"/dev/zero"', '"file:///etc/passwd"', '"https://localhost:1/x"', '"cuda:99"',
    "[[]]",
    "[[[1]]]", "[1, 2, 3]", '["a", "a"]', '[true, "x", null, 1.5]', '{"": ""}', '{"__class__": 5}', '{"a": {"b": [1]}}',
    "[" + "0," * 5_000 + "0]", "'x'", "undefined", "01", "1_000", "0x10", "+1", ".5", '"\t"', '"a" "b"', "//", "",
)  # fmt: skip
# Texts for cells, prompts and templates.
TEXTS = (
    "", "[", "{", "\ud800", "\0", "= 1", '"', "9" * 5_000, "[" * 3_000, "nan", " ", "\n", "\r", "\t", ",", ";", '""',
    '"x',
    "'", "{}", "{{", "{subject}", "{0}", "%s", "\u202e", "\u0301", "\u200b", "\ufeff", "\U0001f600", "\u2028",
    "\x1b[0m",
    "word " * 3_000, "n" * 200_000, "<|endoftext|>", "=1+1", "null", "-1", "1e999", "[[x]]", "a = 1", "\\", "\\u", "%}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 1 / 0 }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ ''.__class__.__mro__ }}", "{% include 'config.json' %}", "{% if %}", "{{ raise_exception('no') }}",
    "{{ nothing.x }}",
)  # fmt: skip
TENSORS = ("drop", "rename", "more", "flat", "turned", "wider", "narrow", "scalar", "none", "nan", "inf", "huge",
"zero",
           "tiny", "taller", "shorter", "minus", "swapped", "long")  # fmt: skip
DTYPES = ("float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "complex64", "float8_e4m3fn",
          "uint16", "float8_e5m2")  # fmt: skip
DIGESTS = {"patch.safetensors": "manifest.json", "editor.safetensors": "editor.json"}
BINARY = (".gguf", ".npz", ".parquet")
_PLACES = ("DROP", "DROP", "RENAME", "MORE", "SWAP", "TWICE", "WRAP", "TEXT")


def draw(file: Path, rng: random.Random) -> Damage:
    """A damage for a file, by what it is."""
    if rng.random() < 0.15:
        return draw_bytes(rng)
    if file.suffix in (".safetensors", ".checkpoint", ".undo"):
        return draw_number(file, rng) if rng.random() < 0.15 else _for_tensors(file, rng)
    if file.suffix in BINARY:
        return draw_number(file, rng)
    if file.suffix == ".json":
        return ["json", *_in(json.loads(file.read_text()), rng)]
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        number = rng.randrange(len(lines))
        what = rng.choice(("line", "drop", "again", "json", "json", "json"))
        if what == "json":
            return ["line", number, *_in(json.loads(lines[number]), rng)]
        return ["whole line", number, what, rng.choice(ODD)]
    if file.suffix in (".csv", ".tsv") and rng.random() < 0.7:
        what = rng.choice(("cell", "cell", "cell", "drop", "more", "raw"))
        return ["cell", rng.randrange(50), rng.randrange(50), what, rng.choice(TEXTS)]
    if file.suffix == ".toml" and rng.random() < 0.7:
        return ["toml", *_in(tomllib.loads(file.read_text()), rng)]
    return ["text", rng.random(), rng.choice(TEXTS)]


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
        return draw_bytes(rng)
    if rng.random() < 0.2:
        field = rng.choice(("dtype", "shape", "data_offsets", None))
        return ["header", rng.choice(names), field, rng.choice(ODD)]
    what = rng.choice((*TENSORS, "dtype", "dtype"))
    return ["tensor", rng.choice(names), what, rng.choice(DTYPES)]


def _in(value: Any, rng: random.Random) -> tuple[list[Any], str]:
    """Where in a JSON value, and what stands there instead; the deeper places are as likely as the first."""
    if rng.random() < 0.5:
        paths = list(_paths(value, []))
        path = rng.choice(paths) if rng.random() < 0.9 else []
    else:
        # Step by step, so that a long table in it does not hide what stands beside.
        path, place = [], value
        while isinstance(place, dict | list) and place and (not path or rng.random() < 0.8):
            path.append(rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place)))
            place = place[path[-1]]
    return path, rng.choice((*ODD, *_PLACES, *_PLACES))


def _paths(value: Any, above: list[Any]) -> Any:
    yield above
    entries = value.items() if isinstance(value, dict) else enumerate(value[:5]) if isinstance(value, list) else ()
    for key, one in entries:
        yield from _paths(one, [*above, key])


def do(damage: Damage, file: Path) -> None:
    """Does a damage to a file; the checksum of tensors is made right again, so that what is behind it is read."""
    kind, *given = damage
    if kind == "bytes":
        to_bytes(file, *given)
    elif kind == "number":
        to_number(file, *given)
    elif kind == "text":
        text, at = file.read_text(), int(given[0] * len(file.read_text()))
        file.write_bytes((text[:at] + given[1] + text[at:]).encode("utf-8", "surrogatepass"))
    elif kind == "json":
        file.write_text(_with(json.loads(file.read_text()), *given))
    elif kind == "toml":
        _to_toml(file, *given)
    elif kind == "cell":
        _to_cell(file, *given)
    elif kind in ("line", "whole line"):
        _to_line(file, kind, *given)
    else:
        _to_tensors(file, kind, *given)
        record = file.parent / DIGESTS.get(file.name, "none")
        if record.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            record.write_text(json.dumps({**json.loads(record.read_text()), "tensors_sha256": digest}))


def _to_tensors(file: Path, kind: str, *given: Any) -> None:
    if kind == "header":
        name, field, odd = given
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        text = _with(header, [name, field] if field else [name], odd).encode("utf-8", "surrogatepass")
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        return
    tensors, texts = _read(file)
    if kind == "texts":
        try:
            texts[given[0]] = _with(json.loads(texts[given[0]]), *given[1:])
        except ValueError:
            texts[given[0]] = given[2]
    else:
        tensors = _changed(tensors, *given)
    save_file(tensors, file, texts or None)


def _to_line(file: Path, kind: str, number: int, *given: Any) -> None:
    lines = file.read_text().splitlines(keepends=True)
    number = min(number, len(lines) - 1)
    if kind == "line":
        lines[number] = _with(json.loads(lines[number]), *given) + "\n"
    else:
        what, odd = given
        lines[number] = {"line": f"{odd}\n", "drop": "", "again": 2 * lines[number]}[what]
    file.write_text("".join(lines))


def _to_cell(file: Path, row: int, column: int, what: str, text: str) -> None:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(file.read_text(), newline=""), delimiter=delimiter))
    cells = rows[row % len(rows)]
    at = column % len(cells)
    if what == "drop":
        del cells[at]
    elif what == "more":
        cells.insert(at, text)
    else:
        cells[at] = "HERE" if what == "raw" else text
    made = io.StringIO(newline="")
    csv.writer(made, delimiter=delimiter).writerows(rows)
    # Raw: as no writer of tables would put it.
    content = made.getvalue().replace("HERE", text) if what == "raw" else made.getvalue()
    file.write_bytes(content.encode("utf-8", "surrogatepass"))


def _to_toml(file: Path, path: list[Any], odd: str) -> None:
    value = json.loads(_with(tomllib.loads(file.read_text()), path, odd if odd in _PLACES else '"HERE"'))
    lines = [f"{json.dumps(name)} = {_toml(one)}" for name, one in value.items()] if isinstance(value, dict) else [odd]
    text = "\n".join(lines).replace('"HERE"', odd)
    file.write_bytes((text + "\n").encode("utf-8", "surrogatepass"))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _with(value: Any, path: list[Any], odd: str) -> str:
    """The JSON text of a value with something else at a place."""
    token = "\u00abHERE\u00bb"
    if not path:
        return odd if odd not in _PLACES else "{}"
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
    elif odd == "SWAP":
        # Something that is right elsewhere.
        others = list(place.values()) if isinstance(place, dict) else list(place)
        place[last] = others[(others.index(place[last]) + 1) % len(others)]
    elif odd == "TWICE":
        place[last] = place[last] * 2 if isinstance(place[last], str | list | int | float) else [place[last]] * 2
    elif odd == "WRAP":
        place[last] = [place[last]]
    elif odd == "TEXT":
        place[last] = json.dumps(place[last])
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
    if what == "swapped":
        other = sorted(tensors)[0] if tensors else name
        return {**tensors, name: tensors.get(other, one).clone(), other: one.clone()}
    filled = {"nan": float("nan"), "inf": float("inf"), "huge": 1e38, "minus": -1e4}
    if what in filled:
        made = one.float().clone()
        made.reshape(-1)[:1] = filled[what]
    else:
        made = {
            "flat": lambda: one.reshape(-1),
            "turned": lambda: one.t() if one.ndim == 2 else one[None],
            "wider": lambda: torch.cat([one, one], -1) if one.ndim else one[None],
            "narrow": lambda: one[..., :-1] if one.ndim else one[None],
            "taller": lambda: torch.cat([one, one], 0) if one.ndim else one[None],
            "shorter": lambda: one[:-1] if one.ndim else one[None],
            "scalar": lambda: torch.tensor(1.0),
            "none": lambda: one[:0] if one.ndim else one[None],
            "zero": lambda: torch.zeros_like(one),
            "tiny": lambda: one.float() * 1e-38,
            "long": lambda: torch.ones(100_000),
            "dtype": lambda: one.to(getattr(torch, dtype)),
        }[what]()
    return {**tensors, name: made.contiguous()}


def copied(source: Path, to: Path) -> Path:
    """A fresh copy of a file or folder, instead of whatever is there."""
    if to.is_dir() and not to.is_symlink():
        shutil.rmtree(to)
    elif to.is_symlink() or to.exists():
        to.unlink()
    return Path(shutil.copytree(source, to) if source.is_dir() else shutil.copy(source, to))
