"""The desktop chat of edgesdk: a window over an engine in a process of its own."""
