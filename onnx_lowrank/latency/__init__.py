"""Times of chains in their places, and of whole models, measured in ONNX Runtime."""
