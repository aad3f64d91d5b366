"""Sources of calibration data, read as feeds of a model, and the choice among samples."""
