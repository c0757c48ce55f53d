"""The way of a check, from the call to the answer."""
