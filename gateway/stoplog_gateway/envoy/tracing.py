"""Continue the trace that a gRPC call names in its metadata."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from stoplog.client.tracing import continued_trace
from stoplog.tracing import FIELDS


def continue_trace(metadata: Iterable[tuple[str, str | bytes]]) -> AbstractContextManager[None]:
    """Return a context in which new spans continue the trace that *metadata* names, if it names one."""
    # gRPC delivers values as bytes only for names that end in "-bin".
    return continued_trace({name: str(value).encode() for name, value in metadata if name in FIELDS})
