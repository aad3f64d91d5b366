"""Solving layers again against the original's responses."""
