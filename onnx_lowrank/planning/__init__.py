"""Candidates of every layer, targets, and the decisions between them; the plan as a file."""
