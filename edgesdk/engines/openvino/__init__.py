"""Runs static decoder graphs on OpenVINO: Intel's processors, GPUs and NPUs."""
