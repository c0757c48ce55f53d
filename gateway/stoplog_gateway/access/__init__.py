"""Who may do what: tokens, scopes, refusals, and files that are read again while the gateway runs."""
