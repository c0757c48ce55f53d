"""The client's connection to Kafka."""
