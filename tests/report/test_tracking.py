"""Records as experiment trackers get them."""

import json

import pytest
from accelerate.tracking import GeneralTracker

import palimpsest as ps
from palimpsest.report.tracking import log_records, require_trackers, steps


class Kept(GeneralTracker):
    """A tracker that remembers."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.configs, self.logged, self.ended = [], [], 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.configs.append(values)

    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture(scope="module")
def record():
    data = ps.dataset("world-counterfact")
    return ps.evaluate(
        ps.load("world"),
        ps.method("ft"),
        data,
        protocol=ps.Sequential(checkpoints=(1, 2)),
        num_edits=3,
        neutral_text=["The sea is blue."],
    )


def test_a_sequence_has_a_step_for_each_checkpoint_and_numbers_of_the_record(record):
    found = dict(steps(record))
    assert list(found) == [1, 2, 3]
    for point in record.checkpoints[:-1]:
        reliability = point.scores["generate"]["reliability"].mean
        assert found[point.num_edits]["generate/reliability"] == reliability
    last = found[3]
    for metric, one in record.scores["generate"].items():
        assert last.get(f"generate/{metric}") == one.mean
    assert last["seconds/total"] == record.seconds["total"]
    assert last["immediate/generate/reliability"] == record.immediate["generate"]["reliability"].mean
    assert last["perplexity/before"] == record.perplexity["before"]
    assert [values["patch_norm"] for values in found.values()] == [one.patch_norm for one in record.checkpoints]
    assert all(type(value) is float for values in found.values() for value in values.values())


def test_trackers_get_the_specification_and_every_step(record, tmp_path):
    tracker = Kept()
    log_records([record, record], [tracker], tmp_path)
    assert [step for step, _ in tracker.logged] == [1, 2, 3, 1, 2, 3] and tracker.ended == 2
    config = tracker.configs[0]
    assert config["method"] == "ft" and config["num_edits"] == 3 and config["config.epochs"] > 0
    json.dumps(config)


def test_unknown_and_missing_trackers_are_named(monkeypatch):
    with pytest.raises(ps.ConfigError, match="tensorboard"):
        require_trackers(["tensorbord"])
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ps.ConfigError, match="pip install wandb"):
        require_trackers(["wandb"])
