"""The state of one partition in memory: the accumulator of the fold over the partition's log.

A partition's decisions are a fold over its log. The ledger holds what earlier records left: clients'
counters, policies, the partition's clock, and how far the log has been applied. It uses no Kafka. It reads
stored entries through a :class:`~stoplog_worker.algorithm.state_codec.StateReader`, and
:meth:`Ledger.take_dirty` returns the entries to be written.

Positions make a replay harmless. A position is ``offset << 16 | index in the batch``. Each state and each
policy stores the last position applied to it. A record at or before that position is not applied to it
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from stoplog.policy import IN_FLIGHT_MS, Limit
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.holds import LEASE, RESERVATION
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update
from stoplog_worker.algorithm.hold_set import HoldSet
from stoplog_worker.algorithm.holds import expire_holds
from stoplog_worker.algorithm.policy_history import PolicyHistory
from stoplog_worker.algorithm.sliding_window import Window, is_live, usage
from stoplog_worker.algorithm.state_codec import (
    Key,
    Marker,
    PolicyChange,
    State,
    StateReader,
    decode_key,
    decode_state,
    encode_key,
    encode_state,
    estimated_size,
    state_key,
)

IDLE_CLIENT_BYTES: Final = 800
"""Estimated memory of a client with one charge."""

GRANTED: Final = "granted"
"""A hold was granted."""

UNSETTLED: Final = "unsettled"
"""A hold came to its end before it was settled, or before all of it was."""


class Entries(NamedTuple):
    """Entries to be written, by table. Those in ``counters`` can expire, those in ``policies`` never do."""

    counters: Iterator[tuple[bytes, bytes]]
    policies: list[tuple[bytes, bytes]]


class UpdateEffect(NamedTuple):
    """The effect of an update that was applied.

    Attributes:
        previous: The change that it replaced; ``None`` if nothing was in force under its key, or for a reset.
        existed: Whether there was anything to replace, to delete or to reset.
        replay_from: The marker from which a replay applies the update again.
    """

    previous: PolicyChange | None
    existed: bool
    replay_from: Marker


class Ledger:
    """The accumulator of one partition's fold.

    Args:
        reader: Reads stored entries.
        marker: Position at which the fold continues.
    """

    def __init__(self, reader: StateReader, marker: Marker) -> None:
        self._reader = reader
        self.checkpointed = marker
        """The marker of the last complete checkpoint."""
        self.next_offset = marker.next_offset
        self.clock_ms = marker.clock_ms
        self.stamp_ms = marker.stamp_ms
        self.applied = marker.applied
        self.signed_from = marker.signed_from
        self.policies = PolicyHistory(reader, marker.default)
        self.states: dict[Key, State] = {}
        """The states in memory, in the order in which :meth:`evict` looks at them."""
        self.size = 0
        """Estimated memory of all states, bytes, as of when each was last loaded or checkpointed."""
        self.dirty: dict[Key, State] = {}
        """The states that changed since they were last encoded."""
        self.hold_counts: Counter[tuple[int, str]] = Counter()
        """What happened to holds since the reader cleared this, by kind and by :data:`GRANTED` or
        :data:`UNSETTLED`: the number of reservations, and the units of leases."""
        self.unjudged = False
        """Whether units were charged that no limit judged, since the reader set this to ``False``: after a
        response, or beyond those that were held. So a client that was denied may have been charged."""
        self._marker_overwritten = False

    def over_budget(self, keep: int) -> bool:
        """Return whether the states take 5/4 of what :meth:`evict` leaves: checkpoints have fallen behind."""
        return self.size > keep * IDLE_CLIENT_BYTES * 5 // 4

    @property
    def changed(self) -> bool:
        """Whether a checkpoint would write anything. The marker alone may have moved."""
        return (
            self.next_offset != self.checkpointed.next_offset
            or self._marker_overwritten
            or bool(self.dirty)
            or bool(self.policies.dirty)
        )

    @property
    def marker(self) -> Marker:
        """The marker of the ledger as it is now."""
        return msgspec.structs.replace(
            self.checkpointed,
            next_offset=self.next_offset,
            clock_ms=self.clock_ms,
            stamp_ms=self.stamp_ms,
            applied=self.applied,
            signed_from=self.signed_from,
        )

    def advance(self, offset: int, stamp_ms: int) -> int:
        """Step past the record at *offset*, and return partition time at that record, ms.

        Partition time only moves forward, by the difference between consecutive timestamps. A broker's clock
        that is set back therefore has no effect. One that is set forward expires windows early, once.

        Args:
            offset: The record's offset.
            stamp_ms: The record's timestamp, set by the broker, ms since the Unix epoch.
        """
        if self.stamp_ms < 0:
            self.clock_ms = stamp_ms
        elif stamp_ms > self.stamp_ms:
            self.clock_ms += stamp_ms - self.stamp_ms
        self.stamp_ms = stamp_ms
        self.next_offset = offset + 1
        return self.clock_ms

    def load(self, keys: Iterable[Key]) -> None:
        """Load the states of *keys*, which are not in memory. A key that is not stored gets a new state."""
        wanted = [(key, encode_key(key)) for key in keys]
        clients = []
        values = self._reader.counters([name for _, name in wanted])
        for (key, name), value in zip(wanted, values, strict=True):
            state = self.states[key] = decode_state(value) if value is not None else State()
            state.size = estimated_size(name, value or b"")
            self.size += state.size
            if isinstance(key, str):
                clients.append((state, b"client\0" + name + b"\0"))
        # One read for all clients is cheaper than one for each client when its policy is resolved.
        histories = self._reader.policies([name for _, name in clients])
        cached = self.policies.cached
        for (state, name), history in zip(clients, histories, strict=True):
            state.own_limits = history is not None or name in cached

    def apply(self, update: Update, position: int) -> UpdateEffect | None:
        """Apply *update*, which is in force from *position* on; return its effect.

        The partition's owner may relay an update twice. The repetition has a version that was already
        applied, changes nothing, and has no effect (``None``). Nor has the update that enables holds: it
        changes no limits.
        """
        if update.key == ENABLE_HOLDS:
            self._enable_holds(update, position)
            return None
        if update.version <= self.applied:
            return None
        # Partition time has reached this record already. Reaching it again does not move it.
        replay_from = msgspec.structs.replace(self.marker, next_offset=position >> POSITION_BITS)
        self.applied = update.version
        self.policies.begin_epoch()
        if update.kind == "reset":
            return UpdateEffect(None, self._reset(update, position), replay_from)
        if update.kind == "client" and update.id in self.states:
            self.states[update.id].own_limits = True
        self.policies.add(update, position, self.checkpointed.next_offset << POSITION_BITS)
        previous = self.policies.replaced_by(update)
        return UpdateEffect(previous, previous is not None, replay_from)

    def _enable_holds(self, update: Update, position: int) -> None:
        if not self.policies.holds_enabled(position):
            self.policies.begin_epoch()
            self.policies.add(update, position, self.checkpointed.next_offset << POSITION_BITS)

    def _reset(self, update: Update, position: int) -> bool:
        """Drop the charges of a client: those of one resource if the update has one, else all.

        Returns:
            Whether there were any in their windows. A replay may find them dropped already.
        """
        client, resource = update.id, update.resource

        def affected(key: Key) -> bool:
            if isinstance(key, str):
                return key == client and not resource
            return key[0] == client and resource in ("", key[1])

        stored = [decode_key(name) for name, _ in self._reader.counters_of(client.encode())]
        self.load(key for key in stored if affected(key) and key not in self.states)
        existed = False
        for key, state in self.states.items():
            if affected(key) and state.windows and state.position < position:
                existed = existed or is_live(state.windows, self.clock_ms)
                self.expire_holds(state)
                if state.holds is not None:
                    # Open holds stay. When they end, their units are charged in these windows.
                    state.windows = {
                        length: Window(length, kept_until_ms=window.kept_until_ms)
                        for length, window in state.windows.items()
                    }
                else:
                    state.windows.clear()
                state.shaped = False
                state.position = position
                self.dirty[key] = state
        return existed

    def expire_holds(self, state: State) -> bool:
        """End the holds of *state* that are over; return whether there were any."""
        ended = expire_holds(state, self.clock_ms)
        for hold in ended:
            if hold.kind in (LEASE, RESERVATION):
                self.hold_counts[hold.kind, UNSETTLED] += hold.units if hold.kind == LEASE else 1
        return bool(ended)

    def usage_report(self, check: Check) -> dict[str, Any]:
        """Return what the reply to a single check of cost 0 contains in addition, after it was decided.

        Returns:
            ``held_to``: kind, id and resource of the policy that applies; ``None`` for the built-in default.
            ``windows``: for each limit, its text, the requests that count against it (``used``), with those
            that are held, and the time until none does if nothing more is charged (``reset_after_ms``).

            If the partition grants holds, each window also has ``held``, the part of ``used`` that is held.
            ``holds`` then sums up the open reservations and leases. Earlier releases know neither.
        """
        state = self.states[state_key(check)]
        holds = state.holds if state.holds is not None else HoldSet()
        position, held = self.next_offset << POSITION_BITS, holds.units
        windows: list[dict[str, Any]] = []
        for limit in state.limits:
            used, reset_ms = usage(state.windows, limit, self.clock_ms)
            if held:
                leaves_ms = Window(limit.window_ms).leaves_ms(holds.charged_last_ms())
                reset_ms = max(reset_ms, leaves_ms - self.clock_ms)
            windows.append(
                {"limit": str(limit), "used": used + held, "reset_after_ms": reset_ms, "held": held}
            )
        if state.in_flight is not None:
            limit, used = Limit(state.in_flight, IN_FLIGHT_MS), holds.reservations
            reset_ms = holds.reservation_ends_ms(used - 1) - self.clock_ms if used else 0
            windows.append({"limit": str(limit), "used": used, "reset_after_ms": reset_ms, "held": used})
        report = {"held_to": self.policies.source_of(check, position), "windows": windows}
        if not self.policies.holds_enabled(position):
            for window in windows:
                del window["held"]
            return report
        leased = sum(lease.units for lease in holds.leases)
        next_ms = holds.reservation_ends_ms(0) if holds.reservations else None
        next_lease_ms = min((lease.end_ms for lease in holds.leases), default=None)
        return report | {
            "holds": {
                "reservations": self._sums(holds.reservations, held - leased, next_ms),
                "leases": self._sums(len(holds.leases), leased, next_lease_ms),
            }
        }

    def _sums(self, count: int, units: int, next_ms: int | None) -> dict[str, Any]:
        """Return the sums of the open holds of one kind, of which the next one ends at *next_ms*."""
        ends_ms = None if next_ms is None else next_ms - self.clock_ms
        return {"open": count, "units": units, "next_end_ms": ends_ms}

    def take_dirty(self) -> tuple[Marker, Entries]:
        """Return the entries that changed since the last call, and the marker that goes with them.

        Each state is encoded when the iterator reaches it, so that a large checkpoint does not delay checks.
        A state charged in the meantime is encoded with that charge. Its position is then ahead of the marker.
        """
        changed, self.dirty = self.dirty, {}
        self._marker_overwritten = False
        return self.marker, Entries(self._encode(changed), self.policies.take_dirty())

    def _encode(self, changed: dict[Key, State]) -> Iterator[tuple[bytes, bytes]]:
        for key, state in changed.items():
            # A charge made since take_dirty() is encoded now, so the state is clean again.
            self.dirty.pop(key, None)
            name, value = encode_key(key), encode_state(state)
            size = estimated_size(name, value)
            self.size += size - state.size
            state.size = size
            state.checkpoints += 1
            yield name, value

    def encoded_state(self, name: bytes) -> bytes | None:
        """Return the value that would be stored under *name*; ``None`` if the state is not in memory."""
        state = self.states.get(decode_key(name))
        return encode_state(state) if state is not None else None

    def rewrite(self, counters: Iterable[bytes], policies: Iterable[bytes]) -> None:
        """Make these stored keys and the marker dirty: another worker has overwritten them.

        The entries are written as of the last record, with the highest position that it can have. A restore
        takes the highest position, and the later record of two equal ones. It thus takes these entries before
        any that was in the changelog, unless that one is ahead of this ledger. A key that is not stored here
        gets an empty state, or a policy that is deleted.
        """
        self._marker_overwritten = True
        as_of = (self.next_offset << POSITION_BITS) - 1
        keys = {decode_key(name) for name in counters}
        self.load(key for key in keys if key not in self.states)
        for key in keys:
            state = self.dirty[key] = self.states[key]
            state.position = max(state.position, as_of)
        self.policies.rewrite(policies, as_of)

    def expire(self, names: Iterable[bytes]) -> None:
        """Drop the states with these stored keys that have no holds, and no charges in their windows.

        Only between checkpoints, like :meth:`evict`.
        """
        for name in names:
            key = decode_key(name)
            state = self.states.get(key)
            if (
                state is not None
                and key not in self.dirty
                and state.holds is None
                and not is_live(state.windows, self.clock_ms)
            ):
                del self.states[key]
                self.size -= state.size

    def evict(self, keep: int) -> None:
        """Drop clean states until the rest takes no more memory than *keep* idle clients.

        The states longest in memory are looked at first. A state that was charged in at least two checkpoints
        is spared once (the *clock* algorithm). A state that was only read or denied is not: reading it again
        costs little. While all states fit, this costs nothing.

        Only between checkpoints: a state that is being written is clean and not yet stored.
        """
        states, dirty = self.states, self.dirty
        bound = keep * IDLE_CLIENT_BYTES
        size = self.size
        evicted, spared = [], []
        for key, state in states.items():
            if size <= bound:
                break
            if state.checkpoints > 1:
                spared.append(key)
            elif key not in dirty:
                evicted.append(key)
                size -= state.size
        self.size = size
        for key in evicted:
            del states[key]
        for key in spared:
            state = states[key] = states.pop(key)
            state.checkpoints = 0
        self.policies.evict(keep)
