"""A Modelfile, by which Ollama takes an edited GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palimpsest.models import has_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ASSISTANT, _AGAIN = "<-system->", "<-user->", "<-assistant->", "<-again->"


def modelfile(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a Modelfile.

    Arguments:
        name: the GGUF file's, beside the Modelfile.
        tokenizer: the model's; its chat template becomes Ollama's, where it is one of turns in a row.
    """
    quoted = f'"./{name}"' if any(letter.isspace() for letter in name) else f"./{name}"
    lines = [f"# ollama create edited -f {name.rsplit('.', 1)[0]}.Modelfile", f"FROM {quoted}"]
    if not has_chat_template(tokenizer):
        lines.append("TEMPLATE {{ .Prompt }}")
    elif (turns := _turns(tokenizer)) is not None:
        template, stop, system = turns
        lines.append(f'TEMPLATE """{template}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
        if stop:
            lines.append(f'PARAMETER stop "{stop}"')
    return "\n".join(lines) + "\n"


def _turns(tokenizer: Any) -> tuple[str, str, str] | None:
    """Ollama's template, what ends the assistant's turn, and the template's own system text; `None` where unclear."""
    user, assistant = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}
    try:
        with_system = _rendered(tokenizer, [{"role": "system", "content": _SYSTEM}, user])
        several = _rendered(tokenizer, [user, assistant, {"role": "user", "content": _AGAIN}], asks=False)
        closed = _rendered(tokenizer, [user, assistant], asks=False)
    except Exception:  # whatever a template of someone else's raises
        return None
    before, *_, rest = with_system.partition(_SYSTEM)
    middle, *_, opening = rest.partition(_USER)
    closing = closed.partition(_ASSISTANT)[2]
    next_turn = several.partition(_ASSISTANT)[2].partition(_AGAIN)[0].removeprefix(closing)
    pieces = (before, middle, opening, closing, next_turn)
    is_plain = not any(mark in one for one in pieces for mark in ("{{", '"""', "<-"))
    if not (is_plain and opening and closing and next_turn and middle.endswith(next_turn)):
        return None
    system = before + "{{ .System }}" + middle.removesuffix(next_turn)
    template = (
        f"{{{{ if .System }}}}{system}{{{{ end }}}}{next_turn}{{{{ .Prompt }}}}{opening}{{{{ .Response }}}}{closing}"
    )
    # The system text that the template writes of its own accord stands where one of ours would.
    lead = several.partition(_USER)[0]
    own = lead.removeprefix(before).removesuffix(middle) if lead.startswith(before) and lead.endswith(middle) else ""
    return template, closing.strip(), own


def _rendered(tokenizer: Any, turns: list[dict[str, str]], *, asks: bool = True) -> str:
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks))
    # Ollama puts the beginning-of-sequence token in front by itself.
    return text.removeprefix(tokenizer.bos_token or "") if _adds_start(tokenizer) else text


def _adds_start(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
