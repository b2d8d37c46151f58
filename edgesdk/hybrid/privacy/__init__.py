"""What in a text is private, and how it is taken out and put back."""
