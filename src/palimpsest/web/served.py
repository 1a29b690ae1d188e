"""The page on a port, until it is interrupted."""

from __future__ import annotations

import hmac
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from palimpsest.errors import ConfigError
from palimpsest.web.page import build_page
from palimpsest.web.workbench import Workbench


def serve_page(
    bench: Workbench,
    *,
    host: str,
    port: int | None,
    token: str | None,
    open_browser: bool,
    ready: Callable[[str], None],
) -> None:
    """Serves the page until the process is interrupted or terminated.

    Arguments:
        host: the address to listen at.
        port: a port, or `None` for the first free one from 7860 on.
        token: what a visitor must give as the password, with any name; `None` lets everyone in who reaches the page.
        open_browser: whether to open it here.
        ready: called with its address once it answers.

    Raises `ConfigError` for a port that is in use.
    """
    page = build_page(bench)
    auth = None if token is None else lambda _name, given: hmac.compare_digest(given.encode(), token.encode())
    try:
        _, address, _ = page.queue(max_size=64).launch(
            server_name=host,
            server_port=port,
            auth=auth,
            auth_message="Any name, and the token as the password.",
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css_paths=Path(__file__).with_name("page.css"),
            head=f"<script>{Path(__file__).with_name('page.js').read_text(encoding='utf-8')}</script>",
        )
    except OSError as error:
        # Gradio's own words advise on its functions and variables; why a port is not to be had, it does not say.
        raise ConfigError(
            "The page cannot be served there.",
            expected="an address of this machine, and a free port",
            found="one that is in use, or may not be used" if port else "none that is free",
            where=f"{host}:{port or 'from 7860 on'}",
            remedy="give another one with --port, or leave --port out",
        ) from error
    ready(address)
    ended = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        ended.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, former)
        page.close()
