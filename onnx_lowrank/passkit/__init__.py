"""What an author of a pass imports."""
