"""``make bench-overload``: what a gateway does with more load than it can answer."""
