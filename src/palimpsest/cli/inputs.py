"""From what was typed to what the library takes: options, methods, models, patches."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palimpsest.cli import completing, terminal
from palimpsest.cli.surroundings import nothing_collected
from palimpsest.errors import ConfigError
from palimpsest.files import FileKind, expanded, parse_toml, said

if TYPE_CHECKING:
    from palimpsest.methods import Method
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch

SHOWN_VALUE = 40
_OF_SOME_METHODS = MappingProxyType(
    {
        "forget_patch": "--method f-learning-ft, f-learning-lora or f-learning-lora-ft",
        "editor": "a method that is trained beforehand, such as mend",
        "keep": "--method auto, which is also what is taken without --method",
        "max_seconds": "--method auto, which is also what is taken without --method",
    }
)
"""Options that are typed by a name of their own, and which methods take them."""
SMALL = 20_000_000
"""Parameters below which a model is small."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A hub id, a folder, a GGUF file, or `world`.",
        show_default=False,
        autocompletion=completing.models,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="`auto` (a GPU if there is one), `cpu`, `cuda:1`, ...")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="`auto` (the checkpoint's), `float32`, `bfloat16`, `float16`.")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="MAP",
        help="Spread a large model over devices: `auto`, `balanced`, ... or a JSON file of modules to devices.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model; refused otherwise."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
AnswerTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Tokens that are written at most where answers are looked for; as many as the longest needs, and some"
        " more, if left out.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
PeopleOption = Annotated[
    int | None, typer.Option("--people", help="A world with N invented people.", show_default="300")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
LogWithOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log-with",
        metavar="TRACKER",
        help="Also send the record to `tensorboard`, `wandb`, `mlflow`, ...; repeatable.",
        show_default=False,
    ),
]
LogDirOption = Annotated[
    Path,
    typer.Option("--log-dir", help="Folder for trackers that write files (tensorboard).", show_default="tracking"),
]
ChatOption = Annotated[
    bool,
    typer.Option("--chat", help="Prompts are a user's turns in the model's chat template, answers the assistant's."),
]
RecordedChatOption = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Ask in the model's chat template; as the patch was made if left out.",
        show_default=False,
    ),
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Skip records that cannot be used, and count them.")]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        help="See `palimpsest list methods`.",
        show_default=False,
        autocompletion=completing.methods,
    ),
]
PresetOption = Annotated[
    str, typer.Option("--preset", metavar="NAME", help="`auto` (the one that fits the model), `none`, or a name.")
]
EditorOption = Annotated[
    Path | None,
    typer.Option("--editor", help="The trained editor, for a method such as mend; the model's own if left out."),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; TOML value. Repeatable."),
]


def parse_options(given: Sequence[str] | None) -> dict[str, Any]:
    """Method options from `key=value` texts; values are TOML, and a bare word is a string.

    A dotted key sets an option inside another: `learn_options.steps=5`.

    Raises `ConfigError` for a text without `=` or a key given twice.
    """
    options: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        *path, last = (part.strip().replace("-", "_") for part in key.split("."))
        if not equals or not last or not all(path):
            raise ConfigError("An option has no value.", expected="--option key=value", found=repr(text))
        place = options
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError("An option is given twice.", found=repr(text), where=f"option {part}")
        if last in place:
            raise ConfigError("An option is given twice.", found=repr(text), where=f"option {last}")
        place[last] = _toml_value(value.strip())
    return options


def make_method(
    name: str, preset: str, given: Sequence[str] | None, *, seed: int | None = None, **more: Any
) -> Method[Any]:
    """A method from what was typed. Raises `ConfigError` for unknown names and options."""
    options = {**parse_options(given), **{key: value for key, value in more.items() if value is not None}}
    if seed is not None:
        if options.get("seed", seed) != seed:
            raise ConfigError("Two seeds are given.", found=f"--seed {seed} and --option seed={options['seed']}")
        options["seed"] = seed
    with terminal.status("loading torch"), nothing_collected():
        terminal.quiet_libraries()
        from palimpsest.methods import method
        from palimpsest.methods.presets import presets

        for option, whose in _OF_SOME_METHODS.items():
            if options.get(option) is not None and not _takes(name, option):
                typed = "--" + option.replace("_", "-")
                raise ConfigError(
                    f"The method {name!r} does not take {typed}.",
                    expected=whose,
                    found=f"--method {name}",
                    remedy=f"leave {typed} out, or choose one of them",
                )
        made = method(name, preset=preset, **options)
    known = presets(name)
    if preset not in ("auto", "none", *known):
        from palimpsest.errors import unknown_name

        raise unknown_name(f"preset of method {name!r}", preset, [*known, "auto", "none"])
    return made


def _takes(name: str, option: str) -> bool:
    """Whether a method has an option of that name."""
    from palimpsest.methods import METHODS

    return option in METHODS[name].load().Config.model_fields


@dataclass(frozen=True)
class Placement:
    """Where a model goes and in which numbers: the options of every command that loads one."""

    device: str = "auto"
    dtype: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False

    def options(self) -> dict[str, Any]:
        """As `palimpsest.load` takes them. Raises `ConfigError` for a map that is neither known nor a file."""
        file = None if self.device_map is None else expanded(self.device_map)
        device_map: Any = self.device_map
        if file is not None and (file.is_file() or file.suffix == ".json"):
            device_map = _read_device_map(file)
        return {
            "device": self.device,
            "dtype": self.dtype,
            "device_map": device_map,
            "trust_remote_code": self.trust_remote_code,
        }


def load_model(
    name: str,
    placement: Placement | None = None,
    *,
    chat: bool | Mapping[str, Any] = False,
    thinking: bool | int | None = None,
) -> EditableModel:
    """The model, with a sign of life on the terminal; a small one computes on one thread from here on.

    More threads hardly help it, and when other work wants the same cores they wait for each other many times longer
    than they compute. One thread also gives the same numbers on any number of cores.
    """
    options = (placement or Placement()).options()
    with terminal.status(f"loading {name}"), nothing_collected():
        terminal.quiet_libraries()
        import torch

        from palimpsest.loading import load

        model = load(name, chat=chat, thinking=thinking, **options)
        if is_small(model):
            torch.set_num_threads(1)
        return model


def _read_device_map(file: Path) -> dict[str, Any]:
    kind = FileKind(
        ConfigError,
        "The device map cannot be read.",
        expected='a JSON object of module names and devices, such as {"model.layers.0": "cuda:0", "": "cpu"}',
    )
    found = kind.json(file)
    if isinstance(found, dict) and found and all(isinstance(place, str | int) for place in found.values()):
        return found
    raise kind.refused(file, f"{type(found).__name__}")


def is_small(model: EditableModel) -> bool:
    """Whether the model is best computed on one thread of a CPU."""
    return model.device.type == "cpu" and sum(one.numel() for one in model.module.parameters()) < SMALL


def read_patches(folders: Sequence[Path]) -> list[Patch]:
    """The patches in these folders. Raises `PatchError` for a folder without a readable patch."""
    with terminal.status("reading patches" if folders else "loading torch"):
        terminal.quiet_libraries()
        from palimpsest.patches import load_patch

        return [load_patch(folder) for folder in folders]


def chat_of(patches: Sequence[Patch], chosen: bool | None) -> bool | Mapping[str, Any]:
    """The chat to ask in: what was chosen, else the one that the patches were made in.

    Raises `ConfigError` when they were made in different ones.
    """
    chats = [patch.manifest.chat for patch in patches]
    if chosen is not None:
        # The same texts again where the patches have them: some templates write the day's date.
        return chosen and next((chat for chat in chats if chat), True)
    if any(chat != chats[0] for chat in chats):
        raise ConfigError(
            "The patches were made under different chat settings.",
            expected="all of them in one chat, or all with plain prompts",
            found=", ".join(f"{p.manifest.label} {_asked(p.manifest.chat)}" for p in patches),
            remedy="say how to ask: --chat or --no-chat",
        )
    return chats[0] or False if chats else False


def _asked(chat: Mapping[str, Any] | None) -> str:
    return "plain" if chat is None else "in a chat with thinking" if chat.get("thought_tokens") else "in a chat"


def _toml_value(text: str) -> Any:
    try:
        found = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(
            "The value of an option cannot be read.",
            expected="a number, a word, true, false, or a list such as [3, 4]",
            found=f"{said(error)}: {text[:SHOWN_VALUE]}{'...' if len(text) > SHOWN_VALUE else ''}",
            where="--option",
        ) from error
    value = found["value"]
    # A bare 2020-01-01 is a date in TOML; no method takes one. What holds a line break may be more than one value.
    return value if len(found) == 1 and isinstance(value, (bool, int, float, str, list, dict)) else text
