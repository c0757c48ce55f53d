"""The worker: judges checks in the order of their log and keeps the counters."""

__version__ = "0.1.0"
