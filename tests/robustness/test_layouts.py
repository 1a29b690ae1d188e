"""Every layout of edits with another type of value at every place in a record: read, left out or refused."""

import copy
import json
from collections import Counter

import pytest

import palimpsest as ps
from palimpsest.datasets import load_edits
from robustness import foreign

LAYOUTS = {
    "zsre": foreign.ZSRE, "counterfact": foreign.COUNTERFACT, "mquake": foreign.MQUAKE, "knowedit": foreign.KNOWEDIT,
    "ripple-edits": foreign.RIPPLE, "easyedit": foreign.EASYEDIT, "own": foreign.OWN,
    "unke": foreign.UNKE, "akew": foreign.AKEW,
}  # fmt: skip
ODD = (
    None, True, 0, 7, 1.5, -1e300, "", " ", "x", "{}", [], [7], [None], ["x"], [[]], [["x"]], {}, {"a": 1},
    [{"a": 1}], {"x": None}, {"prompt": 7}, {"str": []}, [{"prompt": ["x"], "ground_truth": {}}],
)  # fmt: skip


def places(value, above=()):
    """The paths of everything in a JSON value."""
    if above:
        yield above
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in entries:
        yield from places(one, (*above, key))


def changed(record, path, odd):
    """The record with something else at a place."""
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = odd
    return record


def read(file):
    """What became of the second of two records."""
    try:
        found = load_edits(file)
    except ps.PalimpsestError as error:
        return "refused" if error.problem and error.where else f"refused without a place: {error}"
    # A layout that is published is read without the records that cannot be.
    if len(found) + len(found.skipped) != 2:
        return "lost"
    return "read" if not found.skipped else "left out" if found.skipped[0].reason else "left out without a reason"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_type_anywhere_is_read_or_refused(layout, tmp_path):
    record, file = LAYOUTS[layout], tmp_path / "edits.json"
    came_to = Counter()
    for path in places(record):
        for odd in ODD:
            file.write_text(json.dumps([record, changed(record, path, odd)]))
            came_to[read(file)] += 1
    assert set(came_to) <= {"read", "refused", "left out"}, came_to
    assert came_to["read"] and came_to["refused"] + came_to["left out"] > 10, came_to
