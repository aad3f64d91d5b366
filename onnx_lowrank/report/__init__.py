"""What was done, as tables, pictures and JSON."""
