"""``python -m stoplog_worker worker | verify | grow``: what the commands of ``stoplog`` run."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Run the command in *arguments*; return its exit status."""
    match arguments:
        case ["worker", *options]:
            from stoplog_worker.worker import main as work  # imports Faust

            return work(options)
        case ["verify", *options]:
            from stoplog_worker.verify.report import main as verify

            return verify(options)
        case ["grow", *options]:
            from stoplog_worker.growth.command import main as grow

            return grow(options)
    print(
        "usage: python -m stoplog_worker worker | verify [--seconds N] [--json] | grow NUMBER [--json]   "
        "(settings: STOPLOG_* variables, see docs/configuration.md)",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
