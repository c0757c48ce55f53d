"""Ledgers for tests: new ones, charges by a check, and a checkpoint without Kafka."""

from __future__ import annotations

from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.sliding_window import decide, reshape
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, State, encode_marker, state_key
from stoplog_worker.state.store import COUNTERS, POLICIES
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import IN_FLIGHT_MS, Limit, Policy, parse_policy
from stoplog.wire.checks import POSITION_BITS, Check
from tests.support.memory_store import MemoryStore

NOW = 1_764_000_000_123
DEFAULT = parse_policy("100/minute")
FIRST_MARKER = Marker(0, 0, -1, -1, "topic", DEFAULT)


def checkpoint(ledger: Ledger, store: MemoryStore) -> None:
    """Write everything that is dirty, and the marker, to *store*."""
    marker, entries = ledger.take_dirty()
    store.write(COUNTERS, list(entries.counters))
    store.write(POLICIES, [*entries.policies, (MARKER_KEY, encode_marker(marker))])
    ledger.checkpointed = marker


def fresh(marker: Marker = FIRST_MARKER) -> Ledger:
    """Return the ledger of a partition without stored entries."""
    return Ledger(NothingStored(), marker)


def at(offset: int) -> int:
    """Return the position of the first check of the record at *offset*."""
    return offset << POSITION_BITS


def charge(ledger: Ledger, check: Check, offset: int) -> State:
    """Charge *check* at NOW as the record at *offset*; return its client's state."""
    key = state_key(check)
    if key not in ledger.states:
        ledger.load([key])
    state = ledger.states[key]
    ledger.policies.resolve(state, check, at(offset))
    reshape(state.windows, state.limits, NOW)
    assert decide(state.windows, state.limits, NOW, check.cost, state.version).allowed
    state.position, state.newest_ms = at(offset), NOW
    ledger.dirty[key] = state
    return state


def spent(state: State) -> int:
    """Return the requests charged to *state*."""
    return max((window.total for window in state.windows.values()), default=0)


def resolved(ledger: Ledger, check: Check, offset: int) -> tuple[Policy, int]:
    """Return the policy that applies to *check* at *offset*, and its version."""
    state = State()
    ledger.policies.resolve(state, check, at(offset))
    last = () if state.in_flight is None else (Limit(state.in_flight, IN_FLIGHT_MS),)
    return Policy(state.limits + last), state.version
