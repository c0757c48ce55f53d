"""The HTTP server: application, protocol and fast path."""
