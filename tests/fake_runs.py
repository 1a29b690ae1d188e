"""Records that no model made: enough of them to fill a page."""

from __future__ import annotations

import random
from typing import Any

from palimpsest.evaluation import aggregate
from palimpsest.evaluation.records import ProbeResult, RunRecord, SequenceCheckpoint, Specification

SCORINGS = ["generate", "teacher_forced", "log_prob"]
METHODS = (
    "ft",
    "ft-l",
    "locft",
    "lora",
    "f-learning-ft",
    "f-learning-lora",
    "f-learning-lora-ft",
    "rome",
    "memit",
    "emmet",
)
KINDS = (
    ("reliability", 1),
    ("generality", 2),
    ("locality.neighborhood", 3),
    ("locality.namesake", 1),
    ("locality.other_relation", 2),
    ("portability.one_hop", 1),
)
PEOPLE = ("Anna Keller", "Bruno Sato", "Clara Okafor", "Dmitri Alvarez", "Elena Novak")
CITIES = ("Lima", "Oslo", "Accra", "Quito", "Hanoi")


def record(
    method: str = "ft", *, num_edits: int = 5, protocol: str = "single", seed: int = 0, **changes: Any
) -> RunRecord:
    """A run with made-up results that depend on the method's name and the seed only."""
    chance = random.Random(f"{method}|{seed}")
    strength = chance.uniform(0.3, 1.0)
    probes = [probe for edit in range(num_edits) for probe in _probes(edit, strength, chance)]
    if protocol == "sequential":
        probes = [one.model_copy(update={"checkpoint": num_edits}) for one in probes]
    scores = aggregate.scores(probes, SCORINGS)
    points = []
    if protocol == "sequential":
        points = [SequenceCheckpoint(num_edits=count, scores=scores) for count in (1, 2, num_edits)]
    fields: dict[str, Any] = {
        "specification": specification(method, num_edits=num_edits, protocol=protocol, seed=seed),
        "status": "ok",
        "probes": probes,
        "scores": scores,
        "checkpoints": points,
        "perplexity": {"before": 5.0, "after": 5.0 + chance.random(), "n": 8},
        "seconds": {"solve": 1.5, "evaluation": 2.0, "total": 3.5},
        "seconds_per_edit": chance.uniform(0.01, 3),
        "peak_memory_bytes": 800_000_000,
        "patch_bytes": round(10 ** chance.uniform(3, 7.5)),
        "counts": aggregate.counts(probes, SCORINGS),
        **changes,
    }
    return RunRecord(**fields)


def specification(method: str, *, num_edits: int, protocol: str, seed: int) -> Specification:
    return Specification(
        method=method,
        config={"seed": seed, "learning_rate": 0.001, "layers": [3]},
        model="world",
        model_fingerprint={"weights": "0123456789abcdef"},
        dataset="world-counterfact",
        dataset_fingerprint="fedcba9876543210",
        protocol=protocol,
        num_edits=num_edits,
        seed=seed,
        scorings=SCORINGS,
        max_new_tokens=12,
        versions={"python": "3.11.7", "torch": "2.13.0"},
        hardware={"machine": "x86_64", "cores": 2},
        created="2026-01-01T00:00:00+00:00",
    )


def _probes(edit: int, strength: float, chance: random.Random) -> list[ProbeResult]:
    person, new, old = PEOPLE[edit % len(PEOPLE)], CITIES[edit % len(CITIES)], CITIES[(edit + 1) % len(CITIES)]
    made = []
    for kind, count in KINDS:
        for number in range(count):
            is_right = chance.random() < strength
            is_locality = kind.startswith("locality")
            prompt = (
                f"{person} was born in"
                if kind == "reliability"
                else f"{kind.split('.')[-1]} {number}: {person} comes from"
            )
            expected = old if is_locality else new
            made.append(
                ProbeResult(
                    edit_id=f"fact-{edit}",
                    kind=kind,
                    prompt=prompt,
                    expected=expected,
                    target_new=new,
                    target_old=old,
                    before=f"{old}.",
                    after=f"{expected if is_right else chance.choice(CITIES)}.",
                    values={
                        "generate": float(is_right),
                        "teacher_forced": (1 + is_right) / 2,
                        "log_prob": float(is_right),
                    },
                    old_answer={"generate": float(not is_right)} if kind in ("reliability", "generality") else {},
                )
            )
    return made
