"""Judging a model by its outputs: how far they are from those of the original."""
