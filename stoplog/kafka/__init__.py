"""Kafka clients and topics, as the SDK, the gateway and the worker use them."""
