"""What `pages.py` writes about models: the site table, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from page_blocks import table

if TYPE_CHECKING:
    from palimpsest import Architecture


def families(_argument: str) -> str:
    """Every row of the site table: for which models it is, how they are laid out, what is to be known."""
    from palimpsest.models.sites.table import architectures

    rows = []
    for row in architectures():
        settings = [f"`{name} = {value}`" for name, value in row.when.items() if name != "is_encoder_decoder"]
        types = ", ".join(f"`{kind}`" for kind in row.model_types)
        types += f" with {', '.join(settings)}" if settings else ""
        rows.append([f"`{row.name}`", types, _mlp(row), _attention(row), "; ".join(_notes(row))])
    return table(["row", "`model_type`", "MLP", "attention", "to know"], rows)


def _mlp(row: Architecture) -> str:
    if row.is_mixture:
        return "experts: no matrix of one MLP"
    names = [name for name in ("up", "gate", "down") if f"mlp.{name}" in row.sites]
    fused = [name for name in names if row.sites[f"mlp.{name}"].is_slice]
    return ", ".join(names) + (f" ({' and '.join(fused)} fused)" if fused else "")


def _attention(row: Architecture) -> str:
    fused = row.sites["attn.q"].is_slice
    cross = ", and to the encoder likewise" if "cross.q" in row.sites else ""
    return ("q, k, v fused, out" if fused else "q, k, v, out") + cross


def _notes(row: Architecture) -> list[str]:
    found = []
    if row.encoder is not None:
        found.append("encoder and decoder")
    if not row.mlp_writes_residual:
        found.append("a norm or a factor stands behind the MLP")
    missing = [name for name in ("mlp", "attn") if name not in row.sites]
    if missing:
        found.append(f"no site {' or '.join(f'`{name}`' for name in missing)}: no module gives that alone")
    return found
