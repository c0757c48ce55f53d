"""``python -m stoplog_gateway`` runs the command ``stoplog``."""

from stoplog_gateway.cli import main

main()
