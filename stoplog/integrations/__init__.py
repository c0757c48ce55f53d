"""Limits in frameworks other than ASGI. Each module needs its framework, and nothing else of Stoplog does."""
