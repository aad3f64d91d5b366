"""Solvers on arrays: numpy and scipy alone, one solver a file."""
