"""The decision, pure: no Kafka, no clock, no I/O."""
