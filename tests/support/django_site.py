"""Configure Django for tests. The configuration of a process cannot change."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings

urlpatterns: list[Any] = []


def configure_django() -> None:
    """Configure a site without views, behind the middleware."""
    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["testserver"],
            ROOT_URLCONF=__name__,
            MIDDLEWARE=["stoplog.integrations.django.RateLimitMiddleware"],
        )
        django.setup()
