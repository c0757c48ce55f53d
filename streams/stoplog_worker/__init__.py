"""The worker: judges checks in the order of the log and keeps the counters."""
