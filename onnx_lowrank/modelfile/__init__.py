"""ONNX files: reading, atomic writing, external data, and checks that a model is valid."""
