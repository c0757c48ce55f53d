"""Producers and readers of the worker."""
