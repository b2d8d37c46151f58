"""Build and write ONNX graphs from a `DecoderSpec`."""
