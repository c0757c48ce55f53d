"""The paths at which proxies ask checks on behalf of their callers."""

from __future__ import annotations

from typing import Final

AUTHORIZE: Final = "/v1/authorize"
ENVOY_JSON: Final = "/json"


def is_authorize(path: str) -> bool:
    """Return whether *path* is ``/v1/authorize`` or a path that a proxy appended to it."""
    return path == AUTHORIZE or path.startswith(f"{AUTHORIZE}/")


def is_for_proxies(path: str) -> bool:
    """Return whether proxies send requests to *path* (of a URL or a route) on behalf of their callers.

    ``Authorization`` and ``Host`` of such a request belong to the proxy's caller.
    """
    return path == ENVOY_JSON or is_authorize(path)
