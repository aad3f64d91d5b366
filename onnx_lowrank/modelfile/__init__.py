"""ONNX files: reading, writing whole or not at all, external data, and checks of what is sound."""
