"""Published figures, for comparison with ours."""

from __future__ import annotations

from palimpsest.config import Config


class PublishedFigure(Config):
    """A published figure for comparison with ours."""

    source: str
    """Paper, table, and the model it was measured on."""
    model: str
    """The label of the model of ours that stands for it."""
    method: str
    """The label of the row."""
    dataset: str
    """The label of the data set."""
    reliability: float | None = None
    generality: float | None = None
    locality: float | None = None
    """All three in percent, as published."""

    def fits(self, model: str, dataset: str, method: str) -> bool:
        """Whether it belongs to the row of ours with these labels."""
        return (self.model, self.dataset, self.method) == (model, dataset, method)
