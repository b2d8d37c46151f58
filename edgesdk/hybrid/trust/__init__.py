"""When an answer of the device is to be trusted."""
