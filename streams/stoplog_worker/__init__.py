"""The worker: it decides the checks in the order of the log and keeps the counters."""
