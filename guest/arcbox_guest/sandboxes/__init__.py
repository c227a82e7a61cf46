"""Sandboxes: short-lived isolated machines that outlive what runs in them."""
