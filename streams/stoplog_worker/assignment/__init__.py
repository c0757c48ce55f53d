"""Assign partitions through Faust, and move their stores accordingly."""
