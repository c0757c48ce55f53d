"""Changelogs into stores: owned partitions, standbys, new lanes."""
