"""Graphs: reading and editing them, constant folding, and writing them back."""
