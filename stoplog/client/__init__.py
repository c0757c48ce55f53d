"""A check, from call to answer."""
