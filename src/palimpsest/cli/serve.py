"""`serve` answers OpenAI's clients: one model, and patches chosen by each request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palimpsest.cli import inputs, terminal
from palimpsest.cli.listening import access_token, require_packages

EXAMPLES = (
    "palimpsest serve world --patch my-patch",
    "PALIMPSEST_TOKEN=... palimpsest serve model.gguf --patch my-patch --host 0.0.0.0",
)
PANEL = terminal.EDITING


def serve(
    model: inputs.ModelArgument,
    patch: Annotated[
        list[Path] | None,
        typer.Option("--patch", help="A patch that requests may choose by its folder's name; repeatable."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; others than loopback need a token in $PALIMPSEST_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens that one answer may have at most.")
    ] = 1024,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="Requests that may wait; further ones are told to try again.")
    ] = 64,
    device: inputs.DeviceOption = "auto",
    dtype: inputs.DtypeOption = "auto",
    device_map: inputs.DeviceMapOption = None,
    trust_remote_code: inputs.TrustOption = False,
) -> None:
    """Serve a model in OpenAI's protocol, with and without patches, until it is interrupted.

    Requests name the model `NAME`, or `NAME+PATCH` with the folder's name of a patch (`NAME+ONE+TWO` for several).
    """
    require_packages(("starlette", "uvicorn"), "serve", "Serving needs a web server.")
    from palimpsest.serving import (
        Address,
        Catalogue,
        Engine,
        Limits,
        NamedPatch,
        build_app,
        open_socket,
        patch_name,
        run,
    )

    address = Address(host, port)
    token = access_token(host, is_loopback=address.is_loopback, what="the endpoint", use="requests then have to carry")
    with open_socket(address) as listening:
        names = [patch_name(folder) for folder in patch or []]
        read = inputs.read_patches(patch or [])
        loaded = inputs.load_model(model, inputs.Placement(device, dtype, device_map, trust_remote_code))
        catalogue = Catalogue(loaded, [NamedPatch(*pair) for pair in zip(names, read, strict=True)])
        engine = Engine(loaded, catalogue, most_waiting=max_waiting)
        limits = Limits(tokens=max_tokens, default_tokens=min(max_tokens, Limits.default_tokens))
        app = build_app(engine, token=token, limits=limits, **({} if address.is_loopback else {"hosts": ()}))
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}"

        def ready() -> None:
            terminal.say(f"{url}/v1 answers for {', '.join(catalogue.names())}")
            terminal.say("stop it with Ctrl-C")

        run(app, listening, ready=ready)
    terminal.log(f"stopped after {terminal.count(engine.served, 'answer')}")
