"""The gateway: HTTP, Envoy, processes, and the command ``stoplog``."""
