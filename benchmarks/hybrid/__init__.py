"""Measure what the confidence, the routing and the guarantees of the hybrid client are worth."""
