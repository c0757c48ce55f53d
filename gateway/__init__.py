"""The gateway: asks on behalf of callers, and lets them through when no answer comes.

The names below are the SDK; ``sluice`` is what comes of :mod:`gateway.cli`. They are imported when first
used, so that a command which needs none of them starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.answer import Answer
    from gateway.blocking import BlockingLimiter
    from gateway.dependency import RateLimit
    from gateway.limiter import Limiter
    from gateway.middleware import RateLimitMiddleware
    from gateway.settings import Settings
    from streams.contract.errors import InvalidInput, SettingsError, SluiceError, TopicError
    from streams.contract.records import Check

__all__ = [
    "Answer",
    "BlockingLimiter",
    "Check",
    "InvalidInput",
    "Limiter",
    "RateLimit",
    "RateLimitMiddleware",
    "Settings",
    "SettingsError",
    "SluiceError",
    "TopicError",
]

_MODULES: Final = {
    "Answer": "gateway.answer",
    "BlockingLimiter": "gateway.blocking",
    "Check": "streams.contract.records",
    "Limiter": "gateway.limiter",
    "RateLimit": "gateway.dependency",
    "RateLimitMiddleware": "gateway.middleware",
    "Settings": "gateway.settings",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES.get(name, "streams.contract.errors")), name)
