"""Adapters: a LoRA becomes a file for a bundle, or is merged into the weights of an export."""
