"""Calibrate a decoder on a text, one layer at a time."""
