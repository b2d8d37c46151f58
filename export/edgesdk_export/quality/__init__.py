"""Measure a bundle against the checkpoint that it came from, with flat memory."""
