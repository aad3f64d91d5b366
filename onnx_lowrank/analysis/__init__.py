"""What one pass over the data says: moments, shapes, operation counts, the time model."""
