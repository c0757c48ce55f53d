"""``python -m streams worker | verify``: what ``sluice worker`` and ``sluice verify`` run."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run what the first of *arguments* names; returns its exit status."""
    match arguments:
        case ["worker"]:
            from streams.worker import main as work  # takes Faust along

            return work()
        case ["verify", *options]:
            from streams.report import main as verify

            return verify(options)
    print(
        "usage: python -m streams worker | verify [--seconds N] [--json]   "
        "(settings: SLUICE_* variables, see README)",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
