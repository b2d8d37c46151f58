"""Teach a bundle, when it is made and without anybody's labels, which of its answers are wrong."""
