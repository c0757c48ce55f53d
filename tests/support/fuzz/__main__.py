"""``make fuzz``: run many inputs with a random seed, print progress, and keep what violates a property."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time

from tests.support.fuzz.runner import FOUND, keep, run_all


def main() -> None:
    """Run as many inputs as ``FUZZ_INPUTS`` says, with the seed ``FUZZ_SEED``."""
    inputs = int(os.environ.get("FUZZ_INPUTS") or 1_000_000)
    seed = int(os.environ.get("FUZZ_SEED") or secrets.randbits(32))
    logging.disable(logging.CRITICAL)  # inputs that are refused are logged, too
    print(f"{inputs:,} inputs with FUZZ_SEED={seed}", flush=True)
    began = time.monotonic()

    def report(target: str, number: int, accepted: int) -> None:
        seconds = time.monotonic() - began
        print(f"{seconds:7.1f} s  {target:16} {number:9,} inputs, {accepted:8,} accepted or new", flush=True)

    violations = run_all(seed, inputs, report)
    for number, violation in enumerate(violations):
        if number < 50:
            keep(violation)
            print(violation, file=sys.stderr)
    if violations:
        sys.exit(
            f"{len(violations)} inputs violate a property; the first are in {FOUND}. Repeat with "
            f"FUZZ_SEED={seed}"
        )


if __name__ == "__main__":
    main()
