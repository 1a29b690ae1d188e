"""The shape of the code: which way imports go, and what must never be written."""

from __future__ import annotations

import ast
import hashlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "palimpsest"
FILES = sorted(SOURCE.rglob("*.py"))
# A package may import from its own level and from those before it.
LEVELS = [
    {
        "errors",
        "files",
        "requests",
        "batches",
        "config",
        "registry",
        "provenance",
        "showing",
        "stopwatch",
        "processes",
        "answers",
        "wording",
    },  # fmt: skip
    {"world"},
    {"checkpoints"},
    {"models"},
    {"patches"},
    {"loading"},
    {"statistics", "solve", "tracing"},
    {"locating", "training"},
    {"datasets", "inspecting"},
    {"teaching"},
    {"methods", "evaluation"},
    {"benchmark"},
    {"report"},
    {"serving", "harness"},
    {"cli", "web"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FAMILY_WORDS = {
    "gpt2", "gptj", "gpt_neox", "llama", "mistral", "qwen", "qwen2", "t5", "bart", "opt", "bloom", "falcon",
    "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "stablelm", "phi", "phi3", "mixtral",
}  # fmt: skip


def package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax tree, read once."""
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    """Every module and package by its dotted name."""
    found = {".".join(("palimpsest", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imports(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """(module, names, line) of everything that a file imports from this project, and from the stub beside it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "palimpsest":
            yield node.module, [alias.name for alias in node.names], node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names if alias.name.startswith("palimpsest"))
    if path.name == "__init__.py" and path.with_suffix(".pyi").exists():
        here = ".".join(("palimpsest", *path.parent.relative_to(SOURCE).parts))
        for node in ast.walk(ast.parse(path.with_suffix(".pyi").read_text())):
            if isinstance(node, ast.ImportFrom):
                module = f"{here}.{node.module}" if node.module else here
                yield module, [alias.name for alias in node.names], node.lineno


def imported(parsed: ast.AST) -> set[str]:
    """First parts, below `palimpsest`, of everything a file imports."""
    names = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("palimpsest"):
            rest = node.module.split(".")[1:]
            names |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("palimpsest.")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    here = package(path)
    if here in ("__init__", "__main__"):
        return
    names = imported(tree(path))
    for name in names - {here}:
        if name in LEVEL_OF:
            assert LEVEL_OF[name] <= LEVEL_OF[here], f"{here} must not import {name}"
    assert not (here == "evaluation" and "methods" in names), "evaluation does not know methods"
    assert not (here == "methods" and "evaluation" in names), "methods do not evaluate"


def test_no_files_import_each_other_in_a_circle():
    """Neither at once nor by detours, within functions and for the type checker included."""
    known, left = modules(), {}
    for name, path in known.items():
        used = set()
        for module, names, _ in imports(path):
            used |= {f"{module}.{one}" if f"{module}.{one}" in known else module for one in names} or {module}
        left[name] = (used & set(known)) - {name}
    # A file that imports nothing of what is left is in no circle, and so on.
    while free := {name for name, used in left.items() if not used & set(left)}:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or above one: {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_package_is_used_through_its_face(path):
    """A package's `__init__` is its interface: the modules in it are imported only from within the package."""
    known, here = modules(), package(path)
    for module, names, line in imports(path):
        if here in ("__init__", "__main__") or module.split(".")[1:2] in ([], [here]):
            continue
        face = known[module]
        if face.parent != SOURCE:
            assert face.name == "__init__.py", (
                f"{path.relative_to(SOURCE)}:{line} imports {names} from {module}; import them from"
                f" {module.rpartition('.')[0]}, and list them in its `__init__`"
            )
            missing = set(names) - set(importlib.import_module(module).__all__)
            assert not missing, f"{path.relative_to(SOURCE)}:{line}: {module} does not list {missing} in `__all__`"


def test_every_name_on_a_face_is_there():
    for name, path in modules().items():
        if path.name == "__init__.py":
            face = importlib.import_module(name)
            assert all(hasattr(face, one) for one in getattr(face, "__all__", ())), name


def test_methods_do_not_import_each_other():
    shared = {
        "base",
        "states",
        "catalogue",
        "checking",
        "codebooks",
        "compressing",
        "edited_keys",
        "editors",
        "fine_tuned",
        "inspection",
        "locate_then_edit",
        "memory",
        "ordinary",
        "outcomes",
        "presets",
        "problem",
        "spread_and_solve",
        "trained",
    }
    for path in (SOURCE / "methods").rglob("*.py"):
        own = path.relative_to(SOURCE / "methods").parts[0].removesuffix(".py")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("palimpsest.methods."):
                assert node.module.split(".")[2] in shared | {own}, f"{path.name} imports {node.module}"


@pytest.mark.parametrize("folder", ["methods", "locating", "training", "solve", "evaluation", "statistics"])
def test_no_model_family_is_named(folder):
    for path in (SOURCE / folder).rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 40:
                words = set(node.value.lower().replace("-", " ").replace("/", " ").split())
                assert not words & FAMILY_WORDS, f"{path.name}:{node.lineno} names {words & FAMILY_WORDS}"


def test_nothing_deep_copies_a_model_or_unpickles():
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {"pickle", "deepcopy", "copyreg", "dill"}, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                raise AssertionError(f"{path.name}:{node.lineno} loads a pickle")


def test_no_module_keeps_mutable_state():
    allowed = {"__all__"}
    for path in FILES:
        for node in tree(path).body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.isupper() and not target.id.startswith("_"):
                    value = ast.unparse(node.value) if node.value else ""
                    assert target.id in allowed or not value.startswith(("{", "[", "dict(", "list(", "set(")), (
                        f"{path.name}:{node.lineno} {target.id}"
                    )


def test_no_function_is_written_twice():
    seen: dict[str, str] = {}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 6:
                body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                text = "\n".join(ast.unparse(statement) for statement in body)
                if len(text.splitlines()) >= 5:
                    where = f"{path.relative_to(SOURCE)}:{node.name}"
                    digest = hashlib.sha256(text.encode()).hexdigest()
                    assert digest not in seen, f"{where} is {seen[digest]} again"
                    seen[digest] = where


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 350, "over 350 lines a file asks to be split"


METHOD_FILES = [
    path for path in FILES if path.is_relative_to(SOURCE / "methods") and "@final\nclass " in path.read_text()
]


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_method_is_its_mathematics(path):
    assert len(path.read_text().splitlines()) <= 250, "options, training and state go into files beside the method"


def test_what_makes_the_pages_and_times_the_code_stays_small():
    scripts = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "docs" / "build").rglob("*.py")]
    assert sum(len(path.read_text().splitlines()) for path in scripts) < 2500, "a recipe or a row of data does it"


def test_no_public_name_has_two_meanings():
    """Classes and type aliases: a name says which of them is meant, wherever it is read."""
    homes: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                # A type alias is written as classes are; calls make type variables and other values.
                name = node.targets[0].id
                if name.isupper() or not name[0].isupper() or isinstance(node.value, ast.Call):
                    continue
            else:
                continue
            if not name.startswith("_"):
                homes.setdefault(name, []).append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_every_preset_names_its_source_and_fits_its_method():
    import tomllib

    from palimpsest.methods.catalogue import METHODS, method

    for file in sorted((SOURCE / "methods" / "presets").rglob("*.toml")):
        record = tomllib.loads(file.read_text())
        assert set(record) <= {"source", "match", "options", "training"}, file
        assert len(record["source"]) > 10, f"{file} does not say where its numbers come from"
        assert file.parent.name in METHODS, file
        method(file.parent.name, **record.get("options", {}))


@pytest.mark.parametrize("command", ["import palimpsest", "from palimpsest.cli import main"])
def test_importing_is_free_of_torch_and_side_effects(command, tmp_path):
    code = (
        f"import sys, logging, random; before = random.getstate(), list(logging.root.handlers); {command}\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules,"
        " (random.getstate(), list(logging.root.handlers)) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_exists():
    import palimpsest

    for name in palimpsest.__all__:
        assert getattr(palimpsest, name).__name__ in (name, name.lower())
    with pytest.raises(AttributeError):
        palimpsest.nothing  # noqa: B018


FOLDERS = ("bench/timing", "docs/build", "runs")
SCRIPTS = [script for folder in FOLDERS for script in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.parent.name}-{script.stem}")
def test_every_script_finds_what_it_imports(script, monkeypatch):
    # A script is started from its own folder; `common` of another folder is another module.
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    assert importlib.import_module(script.stem).__doc__
