"""``python -m streams worker``: what ``sluice worker`` runs."""

from __future__ import annotations

import sys

from streams.worker import main

if __name__ == "__main__":
    if sys.argv[1:] != ["worker"]:
        sys.exit("usage: python -m streams worker   (settings: SLUICE_* variables, see README)")
    sys.exit(main())
