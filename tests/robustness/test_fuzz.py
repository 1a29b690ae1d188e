"""A small share of the campaign of `make fuzz`, and everything that it ever found."""

import pytest

from robustness.fuzz import campaign, kept, problem
from robustness.workshop import METHODS, Workshop

FEW = ("ft", "grace")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        place = tmp_path_factory.mktemp("workshop")
        patched.setenv("PALIMPSEST_CACHE", str(place / "cache"))
        yield Workshop(place, FEW, is_small=True)


def test_a_small_campaign_goes_well(shop):
    counts, wrong = campaign(shop, 3, 40)
    assert not wrong and sum(counts.values()) == 40


def test_what_was_found_once_goes_well(shop):
    cases = [case for case in kept() if case["kind"] in shop.kinds]
    for case in cases:
        found, _ = problem(shop, case)
        assert found is None, (case, found)


@pytest.mark.slow
def test_what_was_found_once_goes_well_for_every_kind(tmp_path):
    whole = Workshop(tmp_path, tuple(METHODS))
    for case in kept():
        found, _ = problem(whole, case)
        assert found is None, (case, found)
