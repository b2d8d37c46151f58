"""Fetch models and keep them."""
