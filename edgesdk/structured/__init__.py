"""Answers in a given output format: a JSON Schema, a regular expression, choices, a grammar."""
