"""Measure what quantizing costs, beside other quantizers."""
