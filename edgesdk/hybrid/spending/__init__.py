"""What the cloud may cost."""
