"""Refit: solving layers again against the original's responses."""
