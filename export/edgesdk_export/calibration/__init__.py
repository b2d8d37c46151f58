"""What calibration learns from a text, one layer of a model at a time."""
