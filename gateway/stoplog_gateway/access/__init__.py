"""Access to a gateway: tokens, scopes, refusals, and files that are read again while the gateway runs."""
