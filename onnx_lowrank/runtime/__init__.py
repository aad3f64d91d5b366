"""Run models in ONNX Runtime: sessions, segments, the cache folder, and this machine's identity."""
