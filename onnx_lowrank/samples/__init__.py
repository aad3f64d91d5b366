"""Where calibration data comes from, and how it becomes feeds of a model."""
