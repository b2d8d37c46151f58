"""How quickly the desktop chat answers a person."""
