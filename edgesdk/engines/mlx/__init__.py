"""Runs ONNX bundles on Apple's MLX: their stored weights, in MLX's own layout."""
