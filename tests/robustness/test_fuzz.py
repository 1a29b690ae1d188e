"""A small share of the campaign of `make fuzz`, and everything that it ever found."""

import os
from unittest import mock

import pytest

from robustness.fuzz import Campaign, kept, surroundings
from robustness.places import untangle
from robustness.workshop import METHODS, Workshop

FEW = ("ft", "grace")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    place = tmp_path_factory.mktemp("workshop")
    with mock.patch.dict(os.environ, surroundings(place)):
        yield Campaign(Workshop(place, FEW, is_small=True))
    untangle(place)


def test_a_small_campaign_goes_well(small):
    counts, wrong = small.run(3, 60)
    assert not wrong and sum(counts.values()) == 60


def test_what_was_found_once_goes_well(small):
    cases = [case for case in kept() if case["kind"] in small.shop.kinds]
    assert cases
    for case in cases:
        found, _ = small.problem(case)
        assert found is None, (case, found)


@pytest.mark.slow
def test_what_was_found_once_goes_well_for_every_kind(tmp_path):
    with mock.patch.dict(os.environ, surroundings(tmp_path)):
        whole = Campaign(Workshop(tmp_path, tuple(METHODS)))
        for case in kept():
            found, _ = whole.problem(case)
            assert found is None, (case, found)
    untangle(tmp_path)
