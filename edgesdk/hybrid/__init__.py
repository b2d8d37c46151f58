"""The hybrid client: what may leave the device, and when it is worth it."""
