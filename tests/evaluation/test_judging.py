"""The scoring `judge`, against a real server on loopback."""

from __future__ import annotations

from typing import Any

import pytest

import chat_server
from palimpsest.datasets.portability.endpoint import Endpoint
from palimpsest.errors import DataError
from palimpsest.evaluation.judging import Judge, messages_for, read_verdict
from palimpsest.evaluation.records import ProbeResult, RunRecord, Specification


def probe(kind: str, after: str | None, **more: Any) -> ProbeResult:
    fields = {"edit_id": "a", "prompt": f"{kind}: where?", "expected": "Lyon", "target_new": "Lyon", "before": "Paris."}
    return ProbeResult(**{**fields, "kind": kind, "after": after, **more})


def run(*probes: ProbeResult) -> RunRecord:
    specification = Specification(
        method="ft", model="m", model_fingerprint={}, dataset="d", dataset_fingerprint="f", protocol="single",
        num_edits=1, seed=0, scorings=["generate"], scoring_version=2, max_new_tokens=8, versions={}, hardware={},
        created="now",
    )  # fmt: skip
    return RunRecord(specification=specification, status="ok", probes=list(probes))


RUN = run(
    probe("reliability", "It is Lyon.", accepts=["Lugdunum"]),
    probe("generality", "Paris"),
    probe("generality", None, prompt="no text"),
    probe("locality.neighborhood", "Rome", expected="Rome", ceiling={"generate": 1.0}),
    probe("locality.namesake", "Rome", expected="Rome", ceiling={"generate": 0.0}),
)


def marks(handler: chat_server.Handler, body: dict[str, Any]) -> None:
    """Judges as one would: by whether the expected answer stands in the given one."""
    task = dict(line.split(": ", 1) for line in body["messages"][1]["content"].split("\n") if ": " in line)
    is_right = task["Expected answer"].split(" (or")[0] in task["Answer given"]
    chat_server.says("correct" if is_right else "Incorrect.")(handler, body)


def test_a_run_is_judged_once(tmp_path: Any) -> None:
    with chat_server.serving(marks) as server:
        judge = Judge(Endpoint(server.url, "m", key="secret"), tmp_path)
        forecast = judge.estimate(RUN)
        assert (forecast.requests, forecast.cached, forecast.output_tokens) == (3, 0, 12) and not server.requests
        characters = sum(len(one.content) for index in (0, 1, 3) for one in messages_for(RUN.probes[index]))
        assert forecast.input_tokens == -(-characters // 4)
        found = judge.judge(RUN)
        assert [one.values["judge"] for one in found.probes] == [1.0, 0.0, None, 1.0, None]
        assert found.scores["judge"]["reliability"].mean == 1 and found.scores["judge"]["generality"].n == 1
        assert found.unscored == {
            "no text was generated": 1,
            "the unedited model does not give the expected answer": 1,
        }
        assert "Lyon (or: Lugdunum)" in server.requests[0]["messages"][1]["content"]
        again = judge.judge(RUN)
        assert (found.asked, found.cached, again.asked, again.cached) == (3, 0, 0, 3)
        assert len(server.requests) == 3 and [one.values for one in again.probes] == [
            one.values for one in found.probes
        ]
        assert Judge(Endpoint(server.url, "another"), tmp_path).estimate(RUN).requests == 3
        assert RUN.probes[0].values == {}
    assert not any("secret" in file.read_text() for file in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "nonsense", ["", "banana", "correct or incorrect", "It is not correct.", "correct " + "yes " * 100, "Richtig"]
)
def test_a_judge_that_says_nonsense_leaves_the_probe_unscored(nonsense: str, tmp_path: Any) -> None:
    with chat_server.serving(chat_server.says(nonsense)) as server:
        found = Judge(Endpoint(server.url, "m"), tmp_path).judge(run(RUN.probes[0]))
        assert found.probes[0].values["judge"] is None and "judge" not in found.probes[0].model_dump()["old_answer"]
        assert "neither correct nor incorrect" in found.probes[0].reasons["judge"]
        assert not list(tmp_path.rglob("*.json")), "what says nothing is asked again"


def test_a_refusal_is_a_reason_and_a_dead_server_an_error(tmp_path: Any) -> None:
    with chat_server.serving(chat_server.says(None, message={"refusal": "I may not."})) as server:
        found = Judge(Endpoint(server.url, "m"), tmp_path).judge(run(RUN.probes[0]))
        assert "I may not" in found.probes[0].reasons["judge"]
    dead = Endpoint(server.url, "m", retries=0, timeout=1)
    with pytest.raises(DataError, match="does not answer"):
        Judge(dead, tmp_path).judge(run(RUN.probes[0]))


def test_verdicts_are_one_word() -> None:
    assert [read_verdict(text)[0] for text in ("correct", "Incorrect.", "**Correct**")] == [1.0, 0.0, 1.0]
