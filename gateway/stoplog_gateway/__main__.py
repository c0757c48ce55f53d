"""``python -m gateway`` is ``stoplog``."""

from stoplog_gateway.cli import main

main()
