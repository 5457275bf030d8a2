"""Detectors as files that other programs run: SavedModel, TensorFlow Lite and ONNX."""
