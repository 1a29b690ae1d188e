"""Routing: prompts that are answered by another text before them, or by another model."""

from palimpsest.models.routing.router import Route, Router, generate, routes, score

__all__ = ["Route", "Router", "generate", "routes", "score"]
