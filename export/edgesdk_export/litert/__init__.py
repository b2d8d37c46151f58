"""LiteRT models: a decoder's `.tflite`, drawn from its spec and written without torch."""
