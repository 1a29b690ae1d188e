"""Shared by the commands that query an endpoint: options, keys, and the cost limit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from palimpsest.cli import terminal
from palimpsest.errors import ConfigError

_KEY = "OPENAI_API_KEY"
Prices = tuple[float, float]

FieldsOption = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="A field of the endpoint's requests. Repeatable."),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key-variable", metavar="NAME", help=f"Environment variable with the key; {_KEY} for an https endpoint."
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")]
RetriesOption = Annotated[int, typer.Option("--retries", min=0, help="Attempts after the first.")]
RateOption = Annotated[
    float | None, typer.Option("--requests-per-minute", min=0.01, help="At most N requests per minute.")
]
PricesOption = Annotated[
    Prices | None,
    typer.Option("--prices", metavar="IN OUT", help="Prices of a million tokens read and written."),
]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Ask nothing when the estimate is higher; needs --prices.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the planned requests and their cost, and stop.")]


def key_of(url: str, variable: str | None) -> str | None:
    """The key of an endpoint; a key from the default variable goes to https only."""
    if variable is None:
        return os.environ.get(_KEY) if url.startswith("https://") else None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            "There is no key.", expected=f"the environment variable {variable}", found="it is not set or blank"
        )
    return key


def require_prices(max_cost: float | None, prices: Prices | None) -> None:
    """Raises `ConfigError` for a bound without the prices that it is reckoned with."""
    if max_cost is not None and prices is None:
        raise ConfigError(
            "A cost cannot be estimated without prices.",
            expected="--prices IN OUT",
            found="--max-cost without --prices",
        )


def say_forecast(forecast: Mapping[str, Any], prices: Prices | None) -> None:
    """Says what will be asked, before it is."""
    cost = f", about {forecast['cost']:.2f} at {prices[0]:g} and {prices[1]:g} a million" if prices else ""
    terminal.log(
        f"About to ask {terminal.count(forecast['requests'], 'question')} of the endpoint "
        f"({forecast['cached']} are in the cache): some {forecast['input_tokens']} tokens to read and "
        f"{forecast['output_tokens']} to write{cost}."
    )


def require_affordable(forecast: Mapping[str, Any], max_cost: float | None, *, problem: str, remedy: str) -> None:
    """Raises `ConfigError`, with this problem and remedy, where the estimate is above the bound."""
    # Written so that NaN, as a bound or a price, is not taken for enough.
    if max_cost is not None and forecast["cost"] is not None and not forecast["cost"] <= max_cost:
        raise ConfigError(
            problem,
            expected=f"at most {max_cost:g}",
            found=f"about {forecast['cost']:.2f}",
            remedy=f"{remedy}, or raise --max-cost",
        )
