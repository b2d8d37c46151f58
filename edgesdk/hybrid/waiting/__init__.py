"""Prompts that wait, encrypted, until the cloud can be reached."""
