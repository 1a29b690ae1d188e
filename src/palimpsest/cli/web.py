"""`web` serves the page to work in."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Annotated

import typer

from palimpsest.cli import completing, inputs, terminal
from palimpsest.cli.serve import TOKEN
from palimpsest.errors import ConfigError

EXAMPLES = (
    "palimpsest web world",
    "palimpsest web world ./my-model --port 8000",
)
PANEL = terminal.EDITING


def web(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="What may be chosen on the page: hub ids, folders, GGUF files, `world`.",
            show_default=False,
            autocompletion=completing.models,
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; others than loopback need a token in $PALIMPSEST_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="A port.", show_default="the first free one from 7860 on"),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser here.")] = False,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
) -> None:
    """Serve a page to ask, edit, undo, trace and export in. Ends with Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "The page needs Gradio, which is not installed.",
            expected="the extra `web`",
            found="no module named gradio",
            remedy="pip install 'palimpsest-lm[web]'",
        )
    from palimpsest.serving import Address

    token = os.environ.get(TOKEN) or None
    if token is None and not Address(host, port or 0).is_loopback:
        raise ConfigError(
            "Others than this machine could reach the page.",
            expected=f"a token in ${TOKEN}, which visitors then give as the password",
            found=f"--host {host}, no token",
            remedy=f"export {TOKEN}=$(openssl rand -hex 16), or leave --host out",
        )
    placement = inputs.Placement(device, dtype, device_map, trust_remote_code)
    # Nothing is told to anyone: Gradio would report that it runs.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with terminal.status("starting the page"):
        terminal.quiet_libraries()
        from palimpsest.web import Workbench, serve_page

    bench = Workbench(models, partial(inputs.load_model, placement=placement))
    with bench.using(models[0]):
        # What cannot be loaded is said here, not on the page.
        pass
    serve_page(
        bench,
        host=host,
        port=port,
        token=token,
        open_browser=open_browser,
        ready=lambda address: terminal.say(f"{address} (Ctrl-C ends it)"),
    )
