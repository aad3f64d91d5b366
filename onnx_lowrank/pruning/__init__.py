"""Pruning: the choice of channels that go, and of how many."""
