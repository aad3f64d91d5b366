"""Solvers on arrays, which need numpy and scipy only: one solver in each file."""
