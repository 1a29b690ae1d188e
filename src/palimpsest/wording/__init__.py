"""Wording: how texts are written, spelled and joined, so that everything that compares or joins them agrees."""
