"""Optimisation loops that methods share."""
