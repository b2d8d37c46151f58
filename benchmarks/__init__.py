"""Measurements beside peers; never part of the test run. Run them from the repository's root."""
