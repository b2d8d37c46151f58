"""What the other packages stand on: device, memory plan, power, cancellation, files."""
