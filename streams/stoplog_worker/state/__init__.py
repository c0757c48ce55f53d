"""A partition's state on disk."""
