"""Runs Core ML packages with coremltools, on macOS."""
