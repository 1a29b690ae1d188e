"""The fast suite as other processors would run it: with fewer instructions, and on one, two and four threads.

    python tests/processors.py                      every setting
    python tests/processors.py lowest avx2-2        some of them
    python tests/processors.py --list               what there is
    python tests/processors.py lowest -- tests/unit/test_finetune.py       what follows goes to pytest

Prints a line for each setting. Exit code 1 when a test fails under any, 2 for a name that is none.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from palimpsest.errors import ConfigError, unknown_name

ROOT = Path(__file__).resolve().parents[1]
FAST = ("-m", "not slow and not gpu and not pretrained", "-n", "2", "--dist", "loadgroup")
THREADS = (1, 2, 4)

# What the kernels of torch itself, of oneDNN and of MKL may use at most. MKL's takes other code paths on processors of
# other makers, which COMPATIBLE is the nearest thing to.
LOW = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
# A processor whose torch may do no more than this has a oneDNN that may do no more than that. Limiting torch alone is
# a processor that there is not: where oneDNN finds AMX, torch's attention in bfloat16 then asks its own kernels for a
# layout that only those for AVX-512 have (`pack_vnni2 is only supported when avx512 is supported`).
ONEDNN_OF_ATEN = {"avx2": "AVX2", "default": LOW["ONEDNN_MAX_CPU_ISA"]}
LIMITS: dict[str, dict[str, str]] = {
    **{f"best-{count}": {"OMP_NUM_THREADS": str(count)} for count in THREADS},
    **{
        f"{name}-{count}": {"ATEN_CPU_CAPABILITY": name, "ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": str(count)}
        for name, onednn in ONEDNN_OF_ATEN.items()
        for count in THREADS
    },
    "onednn": {"ONEDNN_MAX_CPU_ISA": LOW["ONEDNN_MAX_CPU_ISA"], "OMP_NUM_THREADS": "1"},
    "mkl": {"MKL_CBWR": LOW["MKL_CBWR"], "OMP_NUM_THREADS": "1"},
    "lowest": {**LOW, "OMP_NUM_THREADS": "1"},
}
# Asked of torch in a process that runs under a setting.
QUESTION = (
    "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.is_available(),"
    " torch.backends.mkl.is_available())"
)


def chosen(names: list[str]) -> list[str]:
    """The settings of these names, or all. Raises `ConfigError`, with near matches, for a name that is none."""
    for name in names:
        if name not in LIMITS:
            raise unknown_name("setting", name, LIMITS)
    return names or list(LIMITS)


def environment(name: str) -> dict[str, str]:
    """The environment of a setting; what the caller's limits, it replaces."""
    kept = {key: value for key, value in os.environ.items() if key not in (*LOW, "MKL_NUM_THREADS")}
    return {**kept, **LIMITS[name]}


def missing(name: str) -> str | None:
    """Why this machine cannot run a setting, or `None`."""
    limits = LIMITS[name]
    if limits.keys() & LOW.keys() and platform.machine() not in ("x86_64", "AMD64"):
        return f"a {platform.machine()} processor has no such instruction sets"
    wanted = limits.get("ATEN_CPU_CAPABILITY")
    capability, has_onednn, has_mkl = _asked(environment(name))
    if wanted == "avx2" and capability != "AVX2":
        return f"the processor has no AVX2: torch says {capability}"
    if wanted is not None and wanted != "default" and _asked(environment("best-1"))[0] == capability:
        return f"it is the best that the processor has: best-{limits['OMP_NUM_THREADS']}"
    if name == "onednn" and has_onednn == "False":
        return "torch was built without oneDNN"
    if name == "mkl" and has_mkl == "False":
        return "torch was built without MKL"
    return None


def _asked(variables: dict[str, str]) -> list[str]:
    """Instruction set, oneDNN, MKL."""
    asked = subprocess.run([sys.executable, "-c", QUESTION], env=variables, capture_output=True, text=True, check=True)
    return asked.stdout.split()


def counts(output: str) -> dict[str, int]:
    """Numbers of tests by outcome, from the last line of pytest that has any."""
    for line in reversed(output.splitlines()):
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)\b", line)
        if found and " in " in line:
            return {outcome: int(number) for number, outcome in found}
    return {}


def run(name: str, words: list[str]) -> bool:
    """Runs the suite under a setting and prints its line; the output itself where a test fails."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", *FAST, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment(name), capture_output=True, text=True, check=False)
    found = counts(done.stdout)
    shown = (
        ", ".join(f"{number:,} {outcome}" for outcome, number in found.items())
        or f"pytest ended with {done.returncode}"
    )
    limits = " ".join(f"{key}={value}" for key, value in LIMITS[name].items())
    print(f"{name:10}  {shown}, {time.perf_counter() - start:.0f} s  ({limits})", flush=True)
    if done.returncode:
        print("".join(f"    {line}\n" for line in (done.stdout + done.stderr).splitlines()[-80:]), flush=True)
    return done.returncode == 0


def main(words: list[str]) -> int:
    """See the module's docstring."""
    cut = words.index("--") if "--" in words else len(words)
    names, more = words[:cut], words[cut + 1 :]
    if "--list" in names:
        for name, limits in LIMITS.items():
            print(f"{name:10}  " + " ".join(f"{key}={value}" for key, value in limits.items()))
        return 0
    try:
        settings = chosen(names)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    outcomes: dict[str, list[str]] = {"green": [], "failed": [], "skipped": []}
    for name in settings:
        why = missing(name)
        if why is not None:
            print(f"{name:10}  skipped: {why}", flush=True)
            outcomes["skipped"].append(name)
        else:
            outcomes["green" if run(name, more) else "failed"].append(name)
    print("; ".join(f"{len(found)} {outcome}" + (f" ({', '.join(found)})" if found else "")
                    for outcome, found in outcomes.items()))  # fmt: skip
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
