"""Property tests are random each time; a failure prints what reproduces it. A slow machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("sluice", deadline=None, print_blob=True)
settings.load_profile("sluice")
