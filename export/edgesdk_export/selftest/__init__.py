"""Is the model that was just written the checkpoint's? Asked of the file, as an engine opens it."""
