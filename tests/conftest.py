"""Tests run on one thread a worker, so that two workers do not fight for two cores, and keep caches of their own."""

import os
import sys

import pytest

from processors import ONEDNN_OF_ATEN

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# Where torch is held to fewer instructions, so is oneDNN.
if os.environ.get("ATEN_CPU_CAPABILITY") in ONEDNN_OF_ATEN:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", ONEDNN_OF_ATEN[os.environ["ATEN_CPU_CAPABILITY"]])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What tests collect must neither reach the user's cache nor come from it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_draws():
    """A test that draws without a seed draws the same whatever ran before it, so that none fails once in a while."""
    torch = sys.modules.get("torch")
    if torch is not None:
        # Not one of the small seeds that the package draws by: what both draw would be alike.
        torch.manual_seed(7_340_033)
