"""Measure what an export takes, beside another exporter."""
