"""Chains and models timed in ONNX Runtime, in place and in alternation."""
