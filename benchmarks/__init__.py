"""Measured figures: models, methods and metrics kept apart; one command, one JSON, one table."""
