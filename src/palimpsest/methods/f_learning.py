"""F-Learning: forget the old facts, then learn the new ones (Ni et al., arXiv:2311.08011).

    delta_old = learner_1(theta; old facts) - theta                              (eq. 2, 3)
    theta'    = theta - rate * delta_old                                         (eq. 4)
    theta*    = learner_2(theta'; new facts)                                     (eq. 5)
    patch     = -rate * delta_old + (theta* - theta')

The two learners are any methods that give weight patches; the paper's three variants are rows of the catalogue. The
first may also be one that forgets by a loss of its own (`methods/unlearning.py`): its change leads away from the old
answers by itself and is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

from pydantic import Field

from palimpsest.answers import gives_new, new_names
from palimpsest.errors import ConfigError, unknown_name
from palimpsest.files import expanded
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.catalogue import FORGETTERS, METHODS, forgetter, method
from palimpsest.models import AnswerRoom, EditableModel, written_answers
from palimpsest.patches import Manifest, WeightPatch, load_patch
from palimpsest.requests import EditRequest

# The paper forgets for three passes. A known fact has next to no loss: a threshold would end forgetting at its start.
_FORGETTING = {"epochs": 3, "stop_loss": 0.0}
SUBTRACTED, ADDED = 0.3, 1.0
"""The rates where none is given: of a change towards the old answers, and of one away from them."""


class FLearningConfig(MethodConfig):
    """Options of the `f-learning` methods."""

    forget: str = "ft"
    """The method whose change towards the old answers is subtracted; or a loss that forgets, whose change is added:
    `grad-diff`, `npo`, `simnpo`, `undial`, `rmu`."""
    learn: str = "ft"
    """The method that then learns the new answers."""
    rate: float | None = Field(default=None, ge=0)
    """How much of that change is taken: the paper's lambda. Left out, 0.3 of one that is subtracted, all of one that is
    added."""
    forget_options: dict[str, Any] = {}
    """Options of the forgetting method; unless they say otherwise, one whose change is subtracted runs for 3 passes,
    without a threshold."""
    learn_options: dict[str, Any] = {}
    """Options of the learning method."""
    only_mastered: bool = True
    """Whether old facts that the model does not know are left unforgotten. The paper forgets all of them."""
    forget_patch: str | None = None
    """Folder of an earlier F-Learning patch, or of its `forget` part: taken instead of computing it again."""


@final
class FLearning(Method[FLearningConfig]):
    """Forgetting before learning; see the module's docstring."""

    Config: ClassVar[type[MethodConfig]] = FLearningConfig
    capabilities: ClassVar[Capabilities] = Capabilities(needs_old_answer=True, is_shared_out=True)

    def check_model(self, model: EditableModel, config: FLearningConfig) -> None:
        for one in _learners(config):
            one.require(model)

    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: FLearningConfig, run: EditRun
    ) -> WeightPatch:
        forgetter, learner = _learners(config)
        for part in (forgetter, learner):
            part.check(requests)
        forget = self._forget_patch(model, requests, forgetter, config, run)
        unlearn = signed(forget, config)
        with model.patched(unlearn), run.clock.stage("learn"):
            outcome = learner.edit(model, requests, progress=run.progress)
        learned = outcome.weight_patch
        run.diagnostics.losses = outcome.diagnostics.losses
        run.diagnostics.facts |= {
            "rate": _rate(forget, config),
            "direction": "away" if _leads_away(forget) else "towards",
            "forget_norm": forget.norm(),
            "learn_norm": learned.norm(),
            "learn": outcome.diagnostics.facts,
        }
        patch = unlearn + learned
        return WeightPatch(patch.deltas, parts={"forget": forget})

    def _forget_patch(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        forgetter: Method[Any],
        config: FLearningConfig,
        run: EditRun,
    ) -> WeightPatch:
        """The forgetter's change, unscaled: computed, or read from where it was kept."""
        old = [request.reversed_to_old() for request in requests]
        if config.forget_patch is not None:
            return _read_for(old, config.forget_patch, run)
        if config.only_mastered:
            with run.clock.stage("mastery"):
                old = _mastered(model, old, run)
        if not old or config.rate == 0:
            return WeightPatch({}, Manifest(label=config.forget))
        with run.clock.stage("forget"):
            outcome = forgetter.edit(model, old, progress=run.progress)
        run.diagnostics.facts["forget"] = outcome.diagnostics.facts
        return outcome.weight_patch


def signed(forget: WeightPatch, config: FLearningConfig) -> WeightPatch:
    """Returns the change for forgetting: a change towards the old answers is negated, one away from them is kept.

    The sign goes by who made the change, also where it is read from a file.
    """
    return (1.0 if _leads_away(forget) else -1.0) * _rate(forget, config) * forget


def _leads_away(forget: WeightPatch) -> bool:
    return forget.manifest.method in FORGETTERS or forget.manifest.label in FORGETTERS


def _rate(forget: WeightPatch, config: FLearningConfig) -> float:
    if config.rate is not None:
        return config.rate
    return ADDED if _leads_away(forget) else SUBTRACTED


def read_forget_patch(folder: str) -> WeightPatch:
    """Reads a forget patch: a folder of its own, or the part of that name in an F-Learning patch.

    Raises `ConfigError` for a patch that cannot be subtracted.
    """
    part = expanded(folder) / "parts" / "forget"
    patch = load_patch(part if part.is_dir() else folder)
    if not isinstance(patch, WeightPatch):
        raise ConfigError(
            "Only a change of weights can be subtracted.",
            expected="a forget patch made by a method such as ft or lora",
            found=f"a patch of kind {patch.kind!r} ({patch.manifest.label})",
            where=folder,
        )
    return patch


def _read_for(old: Sequence[EditRequest], folder: str, run: EditRun) -> WeightPatch:
    """An earlier forget patch, if it was made by learning old answers; says which of these it does not cover.

    Raises `ConfigError` for a patch that taught something else: subtracting it would unlearn that.
    """
    patch = read_forget_patch(folder)
    taught = {(edit["prompt"], edit["target_new"]) for edit in patch.manifest.edits}
    covered = [request for request in old if (request.prompt, request.target_new) in taught]
    if taught and not covered:
        raise ConfigError(
            "The forget patch is about other facts.",
            expected="a patch made by learning the old answers of these edits",
            found=f"one that taught {'; '.join(f'{prompt} {answer}' for prompt, answer in sorted(taught)[:3])}",
            where=folder,
            remedy="give the folder of an earlier F-Learning patch for these facts, or leave the option out",
        )
    if len(covered) < len(old):
        run.diagnostics.notes.append(f"The forget patch covers {len(covered)} of {len(old)} old facts.")
    return patch


def _mastered(model: EditableModel, old: list[EditRequest], run: EditRun) -> list[EditRequest]:
    """The requests whose old answer the model gives, under any of its names; notes tell how many.

    Forgetting what was never learned damages other knowledge (section 4.1 of the paper).
    """
    room = AnswerRoom.of(model.tokenizer, (name for request in old for name in new_names(request)))
    answers = written_answers(model, [request.prompt for request in old], room)
    is_chat = model.chat is not None
    known = [r for r, answer in zip(old, answers, strict=True) if gives_new(r, answer, is_chat=is_chat)]
    unknown = [r for r in old if r not in known]
    run.diagnostics.facts["mastered"] = len(known)
    note = f"The model knows {len(known)} of {len(old)} old facts."
    if unknown:
        run.diagnostics.facts["not_mastered"] = [request.id.removesuffix("-old") for request in unknown]
        shown = "; ".join(f"{r.prompt} {r.target_new}" for r in unknown[:3])
        note += f" The others were left unforgotten: {shown}{' ...' if len(unknown) > 3 else ''}"
    run.diagnostics.notes.append(note)
    return known


def _learners(config: FLearningConfig) -> tuple[Method[Any], Method[Any]]:
    """Returns the two learners. Both have one seed: a rate of zero must be plain learning, bit for bit."""
    own = {"seed": config.seed, "look_again": False}
    return (
        _learner(config.forget, {**_FORGETTING, **own}, config.forget_options, can_forget=True),
        _learner(config.learn, own, config.learn_options),
    )


def _learner(
    name: str, defaults: Mapping[str, Any], options: Mapping[str, Any], *, can_forget: bool = False
) -> Method[Any]:
    """A method by name, with those of the defaults that it knows.

    Raises `ConfigError` when its patches cannot be subtracted and added.
    """
    if "name" in options:
        raise ConfigError("A learner's name is not one of its options.", where="forget_options or learn_options")
    if name in FORGETTERS and can_forget:
        if "loss" in options:
            raise ConfigError(
                "A forgetter's loss is its name.", found=f"loss = {options['loss']!r}", where="forget_options"
            )
        own = {key: value for key, value in defaults.items() if key in ("seed", "look_again")}
        return forgetter(name, **own | dict(options))
    if name not in METHODS:
        raise unknown_name("method", name, [*METHODS, *FORGETTERS] if can_forget else [*METHODS])
    known = METHODS[name].load().Config.model_fields
    learner = method(name, **{key: value for key, value in defaults.items() if key in known} | dict(options))
    if not learner.capabilities.gives_weight_patch or learner.capabilities.needs_old_answer:
        raise ConfigError(
            "F-Learning cannot be built on this method.",
            expected="a method that changes weights and does not itself forget, such as ft or lora",
            found=repr(name),
            where="options forget and learn",
        )
    return learner
