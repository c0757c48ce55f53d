"""Restore stores from changelogs: of active partitions, standbys and new lanes."""
