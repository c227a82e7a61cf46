"""What a request does: one command class per request type, registered by message type."""
