"""Export: turn a checkpoint into a bundle."""
