"""What the hybrid client writes down, on the device only."""
