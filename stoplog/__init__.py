"""The SDK of Stoplog, a distributed rate limiter.

A public name is imported on first use, so that ``import stoplog`` itself loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stoplog.asgi.dependency import RateLimit
    from stoplog.asgi.middleware import RateLimitMiddleware
    from stoplog.client.answer import Answer
    from stoplog.client.blocking import BlockingLimiter
    from stoplog.client.limiter import Limiter
    from stoplog.client.settings import Settings
    from stoplog.errors import (
        Denied,
        InvalidInput,
        LimitExceeded,
        SettingsError,
        StoplogError,
        TopicError,
        WaitTimeout,
    )
    from stoplog.integrations.functions import limit
    from stoplog.wire.checks import Check

__version__ = "0.3.0.dev0"

__all__ = [
    "Answer",
    "BlockingLimiter",
    "Check",
    "Denied",
    "InvalidInput",
    "LimitExceeded",
    "Limiter",
    "RateLimit",
    "RateLimitMiddleware",
    "Settings",
    "SettingsError",
    "StoplogError",
    "TopicError",
    "WaitTimeout",
    "limit",
]

_MODULES: Final = {
    "Answer": "stoplog.client.answer",
    "BlockingLimiter": "stoplog.client.blocking",
    "Check": "stoplog.wire.checks",
    "Limiter": "stoplog.client.limiter",
    "RateLimit": "stoplog.asgi.dependency",
    "RateLimitMiddleware": "stoplog.asgi.middleware",
    "Settings": "stoplog.client.settings",
    "limit": "stoplog.integrations.functions",
}
"""Modules of the public names; all others are in ``stoplog.errors``."""

if not TYPE_CHECKING:  # a type checker would accept any name as one of the package

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES.get(name, "stoplog.errors")), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
