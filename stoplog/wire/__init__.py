"""The records of every topic: one module a topic, each opening with its byte table."""
