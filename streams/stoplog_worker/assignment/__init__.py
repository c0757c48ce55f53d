"""Which partitions this worker owns, as Faust assigns them."""
