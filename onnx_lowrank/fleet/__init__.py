"""Fleets: many models, each compressed in a process of its own, within limits, with a journal."""
