"""The worker's producers and its consumer of assigned partitions."""
