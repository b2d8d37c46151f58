"""ONNX decoders, run by onnxruntime."""
