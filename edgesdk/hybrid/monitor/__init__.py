"""One optional monitor: audits, drift detection, and the risk guarantee that they watch."""
