"""The process: command line, settings, logging, listeners, connections, systemd."""
