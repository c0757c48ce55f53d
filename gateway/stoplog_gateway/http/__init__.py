"""The gateway's HTTP server: application, routes, protocol and fast path."""
