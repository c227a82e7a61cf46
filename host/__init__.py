"""The other end: a client for harnesses, a command line, a pytest plugin."""
