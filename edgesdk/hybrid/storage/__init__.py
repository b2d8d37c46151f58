"""What the hybrid client stores, on the device only."""
