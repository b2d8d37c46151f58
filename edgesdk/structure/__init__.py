"""Answers of a given form: JSON of a schema, a regular expression, choices, a grammar."""
