"""Tests on pretrained models: all of this folder's carry the marker, and share one loaded model a worker.

A test that takes `smollm2` leaves it as it was; one that changes its model loads its own. Each test gets the models by
`pretrained_models.pretrained_path`, which skips it where they are not there.
"""

from pathlib import Path

import pytest

import palimpsest as ps
from pretrained_models import fast_dtype, pretrained_path


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.pretrained)


@pytest.fixture(scope="session")
def smollm2_folder():
    return pretrained_path("smollm2")


@pytest.fixture(scope="session")
def smollm2_gguf():
    return pretrained_path("smollm2.gguf")


@pytest.fixture(scope="session")
def smollm2(smollm2_folder):
    """SmolLM2-135M-Instruct in the faster dtype of this machine."""
    return ps.load(smollm2_folder, dtype=fast_dtype())


@pytest.fixture(scope="session")
def smollm2_float32(smollm2_folder):
    return ps.load(smollm2_folder, dtype="float32")
