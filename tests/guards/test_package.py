"""What is released: one version, every file it names, and workflows that run what is run here."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_stands_in_one_place():
    version = PROJECT["version"]
    places = [ROOT / "CITATION.cff", ROOT / "Dockerfile", *(ROOT / "src").rglob("*.py")]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert [path.name for path in places if f'"{version}"' in path.read_text()] == []


def test_what_the_package_names_is_there():
    assert all((ROOT / name).is_file() for name in [PROJECT["readme"], *PROJECT["license-files"]])
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if line.startswith("include "):
            assert all((ROOT / name).is_file() for name in line.split()[1:])
    assert "License ::" not in " ".join(PROJECT["classifiers"]), "the licence is an expression, not a classifier"


def test_the_tests_have_every_extra_that_serves_or_reads():
    extras = PROJECT["optional-dependencies"]
    names = {re.split(r"[<>=;]", one)[0] for one in extras["dev"]}
    assert {re.split(r"[<>=;]", one)[0] for name in ("gguf", "serve", "hub") for one in extras[name]} <= names


def test_workflows_run_what_is_run_here():
    (file,) = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(file.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands[:2] == [".ci/run", "make dist"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert jobs["run"]["strategy"]["matrix"]["python"][0] == lowest
    for command in commands:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_who_is_to_be_cited_is_said():
    record = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert record["license"] == PROJECT["license"] and record["authors"] and record["title"]
