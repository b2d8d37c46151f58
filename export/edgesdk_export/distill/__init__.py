"""Distill a big model's skill into a small one; the only place where torch is imported."""
