"""A state whose numbers are of another type, as a model in another precision leaves it, is gone on with or refused."""

import os
from unittest import mock

import pytest

from palimpsest.files import read_tensors
from robustness.fuzz import Campaign, surroundings
from robustness.places import untangle
from robustness.workshop import STATES, Workshop


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("states")
    with mock.patch.dict(os.environ, surroundings(place)):
        yield Campaign(Workshop(place, STATES, only=("state",)))
    untangle(place)


@pytest.mark.slow
@pytest.mark.parametrize("method", STATES)
def test_numbers_of_another_type_are_read_or_refused(whole, method):
    kind = f"state {method}"
    tensors = read_tensors(whole.shop.kinds[kind].source).tensors
    names = [name for name, one in tensors.items() if one.is_floating_point()]
    assert names
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        damages = [["tensor", name, "dtype", dtype] for name in names]
        found, how = whole.problem({"kind": kind, "file": "", "damages": damages, "command": 0})
        assert found is None and how in ("done", "failed test", "refused"), (dtype, found)
