"""Rate limiting for ASGI applications: a middleware and a FastAPI dependency."""
