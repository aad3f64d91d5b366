"""Chains: replacements of layers as values, with stages, geometry, composition and counts."""
