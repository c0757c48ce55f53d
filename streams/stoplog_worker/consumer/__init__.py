"""The consumer thread: it consumes records and advances every partition that this worker processes."""
