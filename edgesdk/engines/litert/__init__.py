"""Run `.tflite` decoders with LiteRT's interpreter."""
