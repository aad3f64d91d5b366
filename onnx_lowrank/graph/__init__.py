"""The vocabulary of graph edits, and constant folding."""
