"""Train the local model on what had to be escalated, and ship it where that made it better."""
