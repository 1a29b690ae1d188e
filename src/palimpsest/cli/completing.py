"""Shell completions, active after `palimpsest --install-completion`. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Iterable

TOPICS = ("methods", "models", "datasets", "metrics", "protocols", "presets", "texts", "statistics")


def methods(incomplete: str) -> list[tuple[str, str]]:
    """Methods, each with its summary."""
    from palimpsest.methods import METHODS

    return [(name, row.summary) for name, row in sorted(METHODS.rows().items()) if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """The bundled models; the shell itself completes folders where none of them fits."""
    from palimpsest.world import BUNDLED

    return _beginning(BUNDLED, incomplete)


def datasets(incomplete: str) -> list[tuple[str, str]]:
    """Data sets, each with its summary; the shell itself completes files where none of them fits."""
    from palimpsest.datasets import DATASETS

    return [(name, row.summary) for name, row in sorted(DATASETS.rows().items()) if name.startswith(incomplete)]


def protocols(incomplete: str) -> list[str]:
    """Protocols of `eval`."""
    from palimpsest.evaluation import PROTOCOLS

    return _beginning(PROTOCOLS, incomplete)


def scorings(incomplete: str) -> list[str]:
    """Scorings of `eval`."""
    from palimpsest.evaluation import SCORINGS

    return _beginning(SCORINGS, incomplete)


def topics(incomplete: str) -> list[str]:
    """The topics of `list`."""
    return _beginning(TOPICS, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
