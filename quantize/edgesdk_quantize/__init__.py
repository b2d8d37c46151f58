"""Number formats, and what they cost in quality."""
