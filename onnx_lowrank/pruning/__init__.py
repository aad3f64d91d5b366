"""Choosing which channels go, and how many."""
