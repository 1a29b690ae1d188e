"""`stats` and what `list` shows of it."""

from __future__ import annotations

from unittest import mock

import pytest

from palimpsest.cli.stats import parse_layers
from palimpsest.errors import ConfigError
from palimpsest.statistics.cache import Cache


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    lines = [f"Anna Keller was born in Oslo {number} years ago, the river is long." for number in range(200)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_stats_are_collected_once(run, workplace, text, tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    arguments = ("stats", workplace / "model", "--text", text, "--layers", "0-1", "--max-tokens", 1000, "--json")
    first = run(*arguments)
    assert first.code == 0
    found = first.json()
    assert [(row["layer"], row["tokens"], row["is_cached"]) for row in found["layers"]] == [
        (0, 1000, False),
        (1, 1000, False),
    ]
    assert found["cache"] == str(Cache().folder)
    again = run(*arguments).json()
    assert [row["is_cached"] for row in again["layers"]] == [True, True]
    assert [row["mean_squared_norm"] for row in again["layers"]] == [
        row["mean_squared_norm"] for row in found["layers"]
    ]
    listed = run("list", "statistics", "--json").json()
    assert sorted((row["layer"], row["tokens"]) for row in listed) == [(0, 1000), (1, 1000)]
    shown = run(*arguments[:-1])
    assert "1,000" in shown.out and "yes" in shown.out


def test_texts_are_listed(run):
    assert {row["name"] for row in run("list", "texts", "--json").json()} >= {"wikipedia", "wikitext", "world"}


def test_an_interrupt_says_how_to_go_on(run, workplace, text, tmp_path):
    with mock.patch("palimpsest.statistics.passes._add_window", side_effect=KeyboardInterrupt):
        result = run("stats", workplace / "model", "--text", text, "--layers", 0, "--cache", tmp_path / "cache")
    assert result.code == 130
    assert "the same command goes on" in result.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--layers", "x"), "5 or 4-8"),
        (("--layers", "7"), "out of range"),
        (("--layers", "0", "--text", "wikipdia"), "wikipedia"),
        (("--layers", "0", "--max-tokens", "10"), "Too few tokens"),
        (("--layers", "0", "--site", "mlp.donw"), "mlp.down"),
    ],
)
def test_bad_input_exits_2(run, workplace, text, tmp_path, options, hint):
    result = run("stats", workplace / "model", "--text", text, "--cache", tmp_path / "cache", *options)
    assert (result.code, result.out) == (2, "")
    assert hint in result.err
    assert not (tmp_path / "cache").exists()


def test_layers_are_parsed():
    assert parse_layers("5") == [5]
    assert parse_layers("4-8") == [4, 5, 6, 7, 8]
    assert parse_layers("3, 1,1-2") == [1, 2, 3]
    for text in ("", "4-", "8-4", "-1", "a"):
        with pytest.raises(ConfigError, match="not numbers"):
            parse_layers(text)
