"""Recompute decisions from the log: ``stoplog verify``, and the oracle of the tests."""
