"""The consumer thread, the only one that touches owned partitions."""
