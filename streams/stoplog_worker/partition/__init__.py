"""One partition that this worker processes."""
