"""`web` serves the page to work in."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from palimpsest.cli import completing, inputs, terminal
from palimpsest.cli.listening import access_token, require_packages
from palimpsest.cli.surroundings import leave_at_once

EXAMPLES = (
    "palimpsest web world",
    "palimpsest web world ./my-model --port 8000",
)
PANEL = terminal.EDITING
_PATIENCE = 3.0
"""Seconds for what is being computed to end."""


def web(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="The models to choose from on the page: hub ids, folders, GGUF files, `world`.",
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
    require_packages(("gradio",), "web", "The page needs Gradio.")
    from palimpsest.serving import Address

    is_loopback = Address(host, port or 0).is_loopback
    token = access_token(host, is_loopback=is_loopback, what="the page", use="visitors then give as the password")
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
    if not bench.end(_PATIENCE):
        terminal.say("What is still being computed is left.")
        leave_at_once(0)
