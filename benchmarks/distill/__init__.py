"""Measure what distilling gives a student that was cut from SmolLM2-135M."""
