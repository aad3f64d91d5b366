"""Measured figures of the library: ``python -m benchmarks NAME``; see README.md for the rows."""
