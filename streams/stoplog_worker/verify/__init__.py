"""``stoplog verify`` and replay: the log as the oracle."""
