"""Decoders whose graphs have fixed shapes, with the KV window in the host's memory."""
