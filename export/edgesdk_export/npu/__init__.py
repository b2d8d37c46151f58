"""Draw and write the two decoder graphs of fixed shapes that NPUs run."""
