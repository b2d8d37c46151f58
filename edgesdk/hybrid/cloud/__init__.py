"""Answers from OpenAI-compatible endpoints, over networks that fail."""
