"""``stoplog up``: broker, workers and gateways on one machine."""
