"""`ask` shows a model's answers, before and after patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.cli.thinking import (
    ThinkingOption,
    ThinkingTokensOption,
    answer_words,
    chosen_thinking,
    thought_lines,
    thoughts,
)
from palimpsest.wording import require_text

EXAMPLES = (
    'palimpsest ask world "The capital of France is"',
    'palimpsest ask world "The capital of France is" "France is a country in" --patch my-patch',
    'palimpsest ask Qwen/Qwen3-0.6B "What is the capital of France?" --thinking --patch my-patch',
)
PANEL = terminal.EDITING


def ask(
    model: inputs.ModelArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to continue.", show_default=False)],
    patch: Annotated[
        list[Path] | None, typer.Option("--patch", help="A patch to apply; repeatable, the first one lowest.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 24,
    as_configured: Annotated[
        bool,
        typer.Option(
            "--as-configured",
            help="Write as the model's generation config says (repetition penalty, sampling), as its users will see"
            " it, instead of plain greedy writing.",
        ),
    ] = False,
    seed: inputs.SeedOption = 0,
    chat: inputs.RecordedChatOption = None,
    thinking: ThinkingOption = None,
    thinking_tokens: ThinkingTokensOption = None,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
    as_json: inputs.JsonOption = False,
) -> None:
    """Ask a model, before and after patches side by side."""
    blank = [text for text in prompts if not text.strip()]
    if blank:
        from palimpsest.errors import DataError

        raise DataError("A prompt is blank.", expected="text with a visible character", found=repr(blank[0]))
    for text in prompts:
        require_text(text, "PROMPT", where="the command line")
    patches = inputs.read_patches(patch or [])
    thinks = chosen_thinking(thinking, thinking_tokens, chat=chat, recorded=True)
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    loaded = inputs.load_model(model, placement, chat=inputs.chat_of(patches, chat), thinking=thinks)

    def said() -> list[str]:
        if not as_configured:
            return loaded.generate(prompts, max_new_tokens=max_new_tokens)
        from palimpsest.models import generate_as_configured

        return generate_as_configured(loaded, prompts, max_new_tokens=max_new_tokens, seed=seed)

    with terminal.status("asking"):
        before = said()
        after: list[str] | list[None] = [None] * len(prompts)
        if patches:
            with loaded.patched(*patches):
                after = said()
    rows = list(zip(prompts, before, after, strict=True))
    if as_json:
        answers = [{"prompt": text, "before": old, "after": new, **thoughts(old, new)} for text, old, new in rows]
        terminal.emit_json({"model": model, "patches": [str(folder) for folder in patch or []], "answers": answers})
        return
    if patches:
        shown = [(text, answer_words(old), answer_words(new)) for text, old, new in rows]
        terminal.print_table(("prompt", "before", "after"), shown)
    else:
        terminal.print_table(("prompt", "answer"), [(text, answer_words(old)) for text, old, _ in rows])
    for row in rows:
        for line in thought_lines(*row):
            terminal.say(line)
    from palimpsest.models import has_chat_template

    is_silent = not all(old if new is None else new for _, old, new in rows)
    if is_silent and loaded.chat is None and has_chat_template(loaded.tokenizer):
        terminal.say("note: the model ends the text there; --chat asks it in its chat template.")
