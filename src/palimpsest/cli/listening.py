"""Checks of `serve` and `web` before they listen: required packages, and a token if other machines can connect."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from palimpsest.errors import ConfigError

TOKEN = "PALIMPSEST_TOKEN"  # noqa: S105  # the name of a variable


def require_packages(packages: Sequence[str], extra: str, problem: str) -> None:
    """Raises `ConfigError`, that names the extra to install, where one of the packages is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            problem,
            expected=f"the extra {extra}",
            found=f"no package {', '.join(missing)}",
            remedy=f"pip install 'palimpsest-lm[{extra}]'",
        )


def access_token(host: str, *, is_loopback: bool, what: str, use: str) -> str | None:
    """The token of the environment, if there is one. Raises `ConfigError` where there must be.

    Arguments:
        what: what others could reach.
        use: what they do with the token.
    """
    token = os.environ.get(TOKEN) or None
    if token is None and not is_loopback:
        raise ConfigError(
            f"Other machines could reach {what}.",
            expected=f"a token in ${TOKEN}, which {use}",
            found=f"--host {host}, no token",
            remedy=f"export {TOKEN}=$(openssl rand -hex 16), or leave --host out",
        )
    return token
