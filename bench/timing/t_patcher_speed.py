"""How much faster a step of T-Patcher is on what one pass has left than with a pass of the whole model in its place.

    python bench/timing/t_patcher_speed.py                     GPT-2 small's dimensions, one CPU thread, a few minutes
    python bench/timing/t_patcher_speed.py --shape gpt2-xl   48 blocks of width 1,600; half an hour, and 10 GB of memory

Weights are random, in float32; facts are the world's, the memory its sentences. The same edits are trained three ways,
each for the same number of steps: as `t-patcher` does it; with a pass of the whole model for every step; and with the
edit eight times in that pass, as the published code has it. Reading the memory comes before all of them and is not
counted. Also measured: what a step is made of. Processor seconds. Results: `bench/results/t_patcher_speed.json` and
`t_patcher_speed_gpt2_xl.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import palimpsest as ps
from common import Timings, one_thread
from palimpsest.locating.last_layer import AnswerPlaces, answer_places
from palimpsest.methods.memory import Memory, MemoryConfig, QueryMemory
from palimpsest.methods.ordinary import ordinary_rows
from palimpsest.methods.t_patcher import Training, memory_loss
from palimpsest.models.bypass import frozen_parameters
from speed import build, text_of

NUM_EDITS, STEPS, REPEATS, COPIES = 2, {"gpt2-small": 30, "gpt2-xl": 10}, 20, 8
MEMORY = {"max_tokens": 8000, "top": 1000}


def prepared(shape: str) -> tuple[ps.EditableModel, Memory, Any, list[ps.EditRequest]]:
    """The model, its memory, the method's options, and edits."""
    model = build(shape, "cpu")
    text = text_of(model)["text"]
    # Every edit takes all its steps: none is looked at before the last.
    method = ps.method(
        "t-patcher", preset="none", text=text, memory=MEMORY, max_steps=STEPS[shape], first_check=STEPS[shape]
    )
    config, _ = method.resolve(model)
    read = MemoryConfig(**MEMORY)  # type: ignore[arg-type]
    memory = QueryMemory().of(model, text, read, lambda: ordinary_rows(model, text, read, at_least=read.top))
    return model, memory, config, list(ps.dataset("world-counterfact").sample(NUM_EDITS, 0).requests)


def ways(model: ps.EditableModel, request: ps.EditRequest) -> dict[str, AnswerPlaces]:
    """The places of one edit, and how its logits are computed."""
    encoded = model.encode(request.prompt, request.target_new)
    one, several = answer_places(model, [encoded]), answer_places(model, [encoded] * COPIES)
    return {
        "cached": one,
        "whole pass": one.by_whole_passes(),
        f"whole pass, {COPIES} copies": several.by_whole_passes(),
    }


def trained(way: str, model: ps.EditableModel, memory: Memory, config: Any, edits: list[ps.EditRequest]) -> Any:
    """Processor seconds of each edit, as long as it takes all its steps."""
    seconds, steps = [], []
    for request in edits:
        places, kept = ways(model, request)[way], memory.apart_from(request)
        nothing, none = torch.zeros_like(places.queries), torch.zeros(0, model.sites.d_model)
        torch.manual_seed(0)
        training = Training(places, nothing, kept, none, "gelu_pytorch_tanh", config)
        start = time.process_time()
        with frozen_parameters(model.module):
            training.run(request.id)
        seconds.append(time.process_time() - start)
        steps.append(training.steps)
    return {"way": way, "seconds": seconds, "steps": steps}


def parts(model: ps.EditableModel, memory: Memory, config: Any, request: ps.EditRequest) -> dict[str, float]:
    """Processor seconds of the parts of one cached step, forward and back."""
    places = ways(model, request)["cached"]
    loud = memory.training[: 4 * config.memory.top]
    keys = torch.randn(len(places.labels), model.sites.d_model, requires_grad=True)
    added = torch.zeros_like(places.queries, requires_grad=True)
    own = torch.ones(len(keys))

    def head() -> None:
        torch.nn.functional.cross_entropy(places.logits(added), places.labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]

    def silence() -> None:
        memory_loss(0.01 * loud @ keys.t(), own, config).backward()  # type: ignore[no-untyped-call]

    def head_forward() -> None:
        with torch.no_grad():
            places.logits(added)

    with frozen_parameters(model.module):
        return {"head": timed(head), "head, forward alone": timed(head_forward), "memory loss": timed(silence)}


def timed(function: Callable[[], None]) -> float:
    """Processor seconds of one call, the mean of some."""
    function()
    start = time.process_time()
    for _ in range(REPEATS):
        function()
    return (time.process_time() - start) / REPEATS


def main() -> None:
    """Measures all ways, and the parts of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=STEPS, default="gpt2-small")
    shape = parser.parse_args().shape
    one_thread()
    model, memory, config, edits = prepared(shape)
    settings = {"shape": shape, "edits": NUM_EDITS, "steps": STEPS[shape], "memory": MEMORY, "copies": COPIES}
    suffix = "" if shape == "gpt2-small" else "_" + shape.replace("-", "_")
    results = Timings(f"t_patcher_speed{suffix}", settings)
    for way in ways(model, edits[0]):
        results.add({"way": way}, lambda way=way: trained(way, model, memory, config, edits))  # type: ignore[misc]
    results.add({"way": "parts"}, lambda: parts(model, memory, config, edits[0]))
    for row in results.rows:
        print(row)


if __name__ == "__main__":
    main()
