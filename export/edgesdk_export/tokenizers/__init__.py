"""Turn a GGUF tokenizer into a `tokenizer.json`."""
