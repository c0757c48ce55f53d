"""The records on each topic, to bytes and back."""
