"""A partition's state on disk, and the removal of expired state."""
