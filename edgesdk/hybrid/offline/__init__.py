"""Requests that wait while the cloud cannot be reached."""
