"""Running models in ONNX Runtime: sessions, pieces, the cache folder, the machine's identity."""
