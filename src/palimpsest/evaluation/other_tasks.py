"""Other abilities, before and after: tasks of lm-evaluation-harness, asked of a model with whatever patches are on it.

The harness brings the tasks, their prompts and their metrics; what it asks of a model is answered here through the one
forward path, so that patches of every kind count. Three questions make up its interface: how probable a continuation
is, how probable a text is, and what the model writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, DataError
from palimpsest.evaluation.drift import log_likelihoods
from palimpsest.models import encode, encode_apart
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_LONGEST_ANSWER = 256


def run_tasks(
    model: EditableModel,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    forward_batch_size: int = 64,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Scores of a model on tasks of the harness: task to metric to value.

    Arguments:
        model: the model, with the patches that are on it.
        tasks: names of the harness's tasks or groups, or of those in `include`.
        include: a folder of task files (.yaml) of one's own.
        limit: most questions per task.
        num_fewshot: solved examples before each question; the task's own number when left out.
        forward_batch_size: rows in one pass.

    Raises `ConfigError` without the package `lm-eval` and for unknown tasks, `DataError` for tasks whose data cannot be
    read or that ask for what cannot be answered.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "Other tasks need another package.",
            expected="the package `lm-eval`",
            found="it is not installed",
            remedy="pip install 'palimpsest-lm[lm-eval]'",
        ) from error
    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown or not tasks:
        from palimpsest.errors import near_matches

        close = [one for name in unknown for one in near_matches(name, manager.all_tasks)]
        raise ConfigError(
            "There is no such task." if tasks else "No task is named.",
            expected="names of lm-evaluation-harness (`lm-eval ls tasks`), or of files in the folder of your own",
            found=", ".join(unknown) or "none",
            remedy=f"did you mean {' or '.join(map(repr, close[:3]))}?" if close else None,
        )
    adapter = harness_kind()(Answering(model, forward_batch_size, progress))
    try:
        found = simple_evaluate(
            model=adapter, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=num_fewshot,
            bootstrap_iters=0, log_samples=False, verbosity="ERROR",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DataError(
            "A task cannot be asked.",
            expected="tasks whose data are on this machine or on the hub, within reach",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            where=", ".join(tasks),
        ) from error
    return {task: _numbers(metrics) for task, metrics in found["results"].items()}


class Answering:
    """Answers the harness's requests with an `EditableModel`.

    Arguments:
        model: the model.
        forward_batch_size: rows in one pass.
        progress: told how far a kind of question is.
    """

    def __init__(self, model: EditableModel, forward_batch_size: int = 64, progress: Progress = silent) -> None:
        self.model, self.rows, self.progress = model, forward_batch_size, progress

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding would write it.

        Raises `DataError` for a continuation that is not parted from its context by white space: prompt and target are
        encoded apart here, so that a word cannot be continued in its middle.
        """
        self.progress("continuations", 0, len(pairs))
        contexts, targets = zip(*(self._parted(*pair) for pair in pairs), strict=True) if pairs else ((), ())
        scores = self.model.score(contexts, targets, forward_batch_size=self.rows)
        self.progress("continuations", len(pairs), len(pairs))
        return [(score.log_prob, all(score.matches)) for score in scores]

    def texts(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each text, its first token given."""
        self.progress("texts", 0, len(texts))
        found = log_likelihoods(self.model, texts, forward_batch_size=self.rows)
        self.progress("texts", len(texts), len(texts))
        return found

    def answers(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Greedy continuations up to the first of each question's `until` texts, or `max_gen_toks` tokens."""
        ways: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for row, (_, options) in enumerate(asked):
            until = options.get("until") or ()
            stops = (until,) if isinstance(until, str) else tuple(until)
            ways.setdefault((int(options.get("max_gen_toks", _LONGEST_ANSWER)), stops), []).append(row)
        found: dict[int, str] = {}
        for (longest, stops), rows in ways.items():
            for start in range(0, len(rows), self.rows):
                self.progress("answers", len(found), len(asked))
                chunk = rows[start : start + self.rows]
                prompts = [_shortened(self.model, asked[row][0], longest) for row in chunk]
                texts = self.model.generate(prompts, max_new_tokens=longest, until=stops, forward_batch_size=self.rows)
                found.update(zip(chunk, texts, strict=True))
        self.progress("answers", len(asked), len(asked))
        return [found[row] for row in range(len(asked))]

    def _parted(self, context: str, continuation: str) -> tuple[str, str]:
        target = continuation.lstrip()
        between = continuation[: len(continuation) - len(target)]
        if not context:
            context = self.model.tokenizer.bos_token or self.model.tokenizer.eos_token or "\n"
        elif not between and not context[-1:].isspace():
            raise DataError(
                "A continuation goes on in the middle of a word.",
                expected="white space between a context and its continuation",
                found=f"{context[-20:]!r} and {continuation[:20]!r}",
                remedy="give the task a target_delimiter",
            )
        # One space is what stands between prompt and target anyway.
        return (context.rstrip(" ") if between in ("", " ") else context + between), target


def harness_kind() -> Any:
    """The harness's own kind of model as a class: what it is made with is an `Answering`, which gets the questions."""
    from lm_eval.api.model import LM

    class _Model(LM):  # type: ignore[misc]
        def __init__(self, answering: Answering) -> None:
            super().__init__()
            self.answering = answering

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return self.answering.continuations([one.args for one in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return self.answering.texts([one.args[0] for one in requests])

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return self.answering.answers([one.args for one in requests])

    return _Model


def _shortened(model: EditableModel, prompt: str, longest: int) -> str:
    """A prompt; of one that leaves no room for an answer the end, as the harness's own models take it."""
    if model.context_length is None:
        return prompt
    if model.is_encoder_decoder:
        # Its answer takes no place in what the encoder reads.
        room, length = model.context_length, len(encode_apart(model.tokenizer, prompt).prompt_ids)
    else:
        room = max(1, model.context_length - longest)
        length = len(encode(model.tokenizer, prompt, chat=model.chat).prompt_ids)
    if length <= room:
        return prompt
    spans = model.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    # What the tokenizer adds by itself has no place in the text.
    starts = [start for start, end in spans if end > start]
    return prompt[starts[min(length - room, len(starts) - 1)] :]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metric to value, without standard errors and what is no number; `acc,none` is `acc`."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and "_stderr" not in name and name != "alias" and math.isfinite(value)
        and name not in ("sample_len", "sample_count")
    }  # fmt: skip
