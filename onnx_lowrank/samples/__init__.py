"""Sources of calibration data, read as feeds of a model."""
