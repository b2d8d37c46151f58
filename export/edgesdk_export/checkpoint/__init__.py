"""Read checkpoints lazily: safetensors and GGUF."""
