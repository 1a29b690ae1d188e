"""Palimpsest: update what a language model knows, as small, reversible, verified patches."""
