"""ASGI middleware and a FastAPI dependency. The middleware needs Starlette only."""
