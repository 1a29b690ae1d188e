"""The options of every command that asks a language model behind an endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")]
RetriesOption = Annotated[int, typer.Option("--retries", min=0, help="Attempts after the first.")]
RateOption = Annotated[
    float | None, typer.Option("--requests-per-minute", min=0.01, help="At most N requests per minute.")
]
PricesOption = Annotated[
    tuple[float, float] | None,
    typer.Option("--prices", metavar="IN OUT", help="Prices of a million tokens read and written."),
]
MaxCostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Ask nothing when the estimate is higher; needs --prices.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it costs, and stop.")]
