"""Test that a written model file computes what its checkpoint computes."""
