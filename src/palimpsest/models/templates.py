"""Chat templates are programs that come with a model: one that does not end is an error, not an endless wait."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_SECONDS = 5.0
_WALL_SECONDS = 120.0
_GROWTH_BYTES = 1 << 30
_LARGEST_NUMBER = 1_000_000
_SIZES_EACH = 64


class EndlessTemplate(Exception):
    """A template that takes more time or memory than any template for a conversation needs."""


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer comes with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """The text that a tokenizer's chat template makes of messages.

    It is rendered in a thread of its own, whose every call and line looks at the thread's processor time: Python runs
    no other check inside a loop of a template. So the limit holds off the main thread too, and a busy machine does not
    reach it.

    Arguments:
        options: of `apply_chat_template`.

    Raises `EndlessTemplate`, and whatever the template raises.
    """
    _refuse_large_numbers(tokenizer.chat_template)
    found: list[str] = []
    raised: list[BaseException] = []

    def work() -> None:
        sys.settrace(_limit())
        try:
            found.append(str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options)))
        except BaseException as error:  # handed on to the thread that asked
            raised.append(error)
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=work, name="chat template", daemon=True)
    thread.start()
    thread.join(_WALL_SECONDS)
    if raised:
        raise raised[0]
    if not found:
        raise EndlessTemplate(f"no end after {_WALL_SECONDS:.0f} seconds")
    return found[0]


def _limit() -> Any:
    """A trace function that raises once its thread has computed for too long, or the process has grown too much."""
    deadline, first, calls = time.thread_time() + CPU_SECONDS, _peak_bytes(), 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal calls
        calls += 1
        if time.thread_time() > deadline:
            raise EndlessTemplate(f"no end after {CPU_SECONDS:.0f} seconds")
        if calls % _SIZES_EACH == 0 or frame.f_code.co_filename == "<template>":
            grown = _peak_bytes() - first
            if grown > _GROWTH_BYTES:
                raise EndlessTemplate(f"{grown / 2**30:.1f} GB of memory")
        return trace if frame.f_code.co_filename == "<template>" else None

    return trace


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _refuse_large_numbers(template: object) -> None:
    """Powers and large constants are computed in one step that nothing can interrupt, when a template is compiled."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not isinstance(template, str):
        return
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(template)
    except (TemplateError, RecursionError):
        return  # rendering will say it, or knows more tags than this does
    if next(tree.find_all(nodes.Pow), None) is not None:
        raise EndlessTemplate("a power, which may be of any size")
    for constant in tree.find_all(nodes.Const):
        value = constant.value
        if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
            raise EndlessTemplate(f"the number {value}, which may stand for a length")
