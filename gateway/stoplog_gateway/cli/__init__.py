"""The command ``stoplog``: runs the parts of Stoplog, and calls a running gateway.

Exit statuses:

==  ====================================================================
0   done; for a check: allowed; for verify: nothing differs
1   denied, refused or failed; for verify: something differs
2   a usage or settings error
3   no gateway answers; for verify: nothing was verified
78  a gateway or worker cannot run with these topics or settings
==  ====================================================================
"""

from __future__ import annotations

from stoplog_gateway.cli.extras import require_command


def main() -> None:
    """Run the command line."""
    require_command()
    from stoplog_gateway.cli.app import app  # needs the packages of the command

    app(prog_name="stoplog")
