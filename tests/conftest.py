"""Tests run on one thread a worker, so that two workers do not fight for two cores, and keep caches of their own."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What tests collect must neither reach the user's cache nor come from it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
