"""The counters and policies of one partition in memory, over what is stored of them.

A partition's decisions are a fold over its log, and this is the accumulator: clients' states, policies,
the partition's clock, and how far the log has been read. It knows no Kafka: it reads through a
:class:`Reader` and hands out what must be written (:meth:`Ledger.take_dirty`).

Positions make replays harmless. A position is ``offset << 16 | index in the batch``; each state and each
policy stores the last one applied to it, and what it already holds is not applied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from stoplog.policy import Policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import Update, UpdateKey
from stoplog_worker.algorithm.sliding_window import Window, Windows, is_live, tick_of, usage

FORMAT: Final = b"\x01"
"""First byte of every stored value; then the position, eight bytes, so that two values of a key can be
told older from newer without decoding them."""

MARKER_KEY: Final = b"\x00marker"

QUIET_BYTES: Final = 800
"""Memory of a client with one charge, as :attr:`State.size` estimates it."""

BUILT_IN: Final = -1
"""Version of the built-in default policy."""


class Entries(NamedTuple):
    """Entries to be written, by table: ``counters`` may expire, ``policies`` (and the marker) never do."""

    counters: Iterator[tuple[bytes, bytes]]
    policies: list[tuple[bytes, bytes]]


class Reader(Protocol):
    """What is stored of one partition."""

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of *keys* in their order."""

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """All entries whose key is *client*, or begins with it and a zero byte."""

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of *keys* in the table of policies, in their order."""


class Marker(msgspec.Struct, frozen=True, array_like=True):
    """How far a partition's log has been read and what its clock showed there.

    ``next_offset``: the first record of ``checks`` not yet applied. ``clock_ms``: partition time;
    ``stamp_ms``: the last record's own timestamp. ``applied``: the highest version of ``limit-updates``
    that has come by. ``topic_id``: of the ``checks`` topic. ``default``: what applies where nothing is
    configured, as it was when the partition was first opened. ``updates_id``: of the ``limit-updates`` topic,
    whose offsets versions are; ``changelog_ids``: of each table's changelog, without which the marker is
    worth nothing. Both are empty if an older worker wrote the marker.
    """

    next_offset: int
    clock_ms: int
    stamp_ms: int
    applied: int
    topic_id: str
    default: Policy
    updates_id: str = ""
    changelog_ids: dict[str, str] = {}


class InForce(msgspec.Struct, frozen=True, array_like=True):
    """From *position* on, *policy* (``None``: deleted) of *version* is in force; *order* as in ``Update``."""

    position: int
    version: int
    policy: Policy | None
    order: int = -1


_NOTHING = Policy()


class State(msgspec.Struct, gc=False):
    """One client's (or client and resource's) counters, and what was last resolved for it.

    ``own``: the client may have limits of its own, as far as they are not for a resource.
    ``shaped``: the windows are those that the policy asks for and no other, so that
    :func:`stoplog_worker.algorithm.sliding_window.reshape` would find nothing to do.
    ``size``: bytes of memory, its key and place among the states included, when last loaded or flushed.
    ``flushes``: since it was loaded, or :meth:`Ledger.forget_clean` last passed it over.
    """

    position: int = -1
    windows: Windows = {}
    epoch: int = -1
    plan: str = ""
    policy: Policy = _NOTHING
    shaped: bool = False
    own: bool = True
    size: int = 0
    flushes: int = 0
    version: int = BUILT_IN


_NEVER = InForce(-1, -1, None)
_pack = msgspec.msgpack.Encoder().encode
_lists = msgspec.msgpack.Decoder(list[list[int]])
_history = msgspec.msgpack.Decoder(list[InForce])
_marker = msgspec.msgpack.Decoder(Marker)


def position_of(value: bytes) -> int:
    """The position stored in an encoded value."""
    return int.from_bytes(value[1:9])


def encode_state(state: State) -> bytes:
    """Version, position, then for each window ``[window, kept until, tick, count, tick step, count, …]``."""
    lists = []
    for window in state.windows.values():
        flat = [window.window_ms, window.kept_until_ms]
        tick_ms = window.tick_ms
        last = window.window_ms + tick_ms  # tick 0 leaves then
        for leaves, count in zip(window.leave_ms, window.counts):  # noqa: B905 - it would take a fifth more
            flat += (leaves - last) // tick_ms, count
            last = leaves
        lists.append(flat)
    return FORMAT + state.position.to_bytes(8) + _pack(lists)


def decode_state(value: bytes) -> State:
    """Read what :func:`encode_state` wrote."""
    windows: Windows = {}
    for flat in _lists.decode(value[9:]):
        window_ms = flat[0]
        tick_ms = tick_of(window_ms)
        leaves = window_ms + tick_ms
        leave_ms = []
        for step in flat[2::2]:
            leaves += step * tick_ms
            leave_ms.append(leaves)
        windows[window_ms] = Window(window_ms, leave_ms, flat[3::2], flat[1])
    return State(position_of(value), windows)


def _size(key: bytes, value: bytes) -> int:
    """Memory that a state and its key take, by what is stored of them: bytes, rather too many than too few.

    A charge takes 48 to 80 bytes in memory, by whether Python has its count ready, and 2 to 6 stored.
    """
    return 250 + len(key) + 26 * len(value)


def leaves_at_ms(value: bytes) -> int:
    """When the last charge in an encoded state leaves its window, partition time; 0 if there is none."""
    last = 0
    for flat in _lists.decode(value[9:]):
        if len(flat) > 2:
            last = max(last, flat[0] + tick_of(flat[0]) * (sum(flat[2::2]) + 1))
    return last


def emptied(value: bytes) -> bytes:
    """An encoded state without charges, of the same position."""
    return value[:9] + _pack([])


def is_state(value: bytes) -> bool:
    """Whether :func:`decode_state` can read *value*; much cheaper than doing so.

    Raises:
        MsgspecError: not even msgpack of the right kind.
    """
    lists = _lists.decode(value[9:])
    return all(len(flat) >= 2 and not len(flat) % 2 and flat[0] > 0 for flat in lists)


def encode_marker(marker: Marker) -> bytes:
    """Version, position, marker."""
    return FORMAT + (marker.next_offset << POSITION_BITS).to_bytes(8) + _pack(marker)


def decode_marker(value: bytes) -> Marker:
    """Read what :func:`encode_marker` wrote."""
    return _marker.decode(memoryview(value)[9:])


def decode_history(value: bytes) -> list[InForce]:
    """Read a stored policy: what came into force, oldest first, as far back as may still be asked for."""
    return _history.decode(memoryview(value)[9:])


Key = str | tuple[str, str]
"""What counters belong to: a client, or a client and a resource. A tuple, so that no client's name,
however odd, can be taken for another's client and resource."""


def state_key(check: Check) -> Key:
    """The key of a check's counters."""
    return (check.client, check.resource) if check.resource else check.client


def _stored_key(key: Key) -> bytes:
    # Ids hold no control characters, so a zero byte parts them.
    return key.encode() if isinstance(key, str) else "\0".join(key).encode()


def _key_of(stored: bytes) -> Key:
    # A key that strayed in need not be UTF-8; no check ever asks for what it is then read as.
    client, _, resource = stored.decode(errors="replace").partition("\0")
    return (client, resource) if resource else client


class Ledger:
    """The accumulator of one partition's fold.

    Args:
        reader: What is stored.
        marker: Where to go on from.
    """

    def __init__(self, reader: Reader, marker: Marker) -> None:
        self._reader = reader
        self.flushed = marker
        self.next_offset = marker.next_offset
        self.clock_ms = marker.clock_ms
        self.stamp_ms = marker.stamp_ms
        self.applied = marker.applied
        self.epoch = 0
        self.states: dict[Key, State] = {}
        """In the order in which :meth:`forget_clean` comes to them."""
        self.size = 0
        """Of all states: bytes, as of when each was last loaded or flushed."""
        self.dirty: dict[Key, State] = {}
        self._policies: dict[bytes, list[InForce]] = {}
        self._dirty_policies: set[bytes] = set()
        self._resolved: dict[tuple[str, str], tuple[Policy, int] | None] = {}
        """By plan and resource, in this epoch."""
        self._overwritten = False

    def crowded(self, keep: int) -> bool:
        """Whether memory is a quarter above what :meth:`forget_clean` leaves: flushes have fallen behind."""
        return self.size > keep * QUIET_BYTES * 5 // 4

    @property
    def changed(self) -> bool:
        """Whether anything, be it only how far the log is read, is not yet flushed."""
        return (
            self.next_offset != self.flushed.next_offset
            or self._overwritten
            or bool(self.dirty)
            or bool(self._dirty_policies)
        )

    @property
    def marker(self) -> Marker:
        """Where the fold stands now."""
        last = self.flushed
        return msgspec.structs.replace(
            last,
            next_offset=self.next_offset,
            clock_ms=self.clock_ms,
            stamp_ms=self.stamp_ms,
            applied=self.applied,
        )

    def advance(self, offset: int, stamp_ms: int) -> int:
        """Step past the record at *offset*; returns partition time as that record sees it.

        Partition time only moves forward, by what lies between one record's timestamp and the next: a
        broker whose clock was set back costs nothing, one set forward expires windows once.
        """
        if self.stamp_ms < 0:
            self.clock_ms = stamp_ms
        elif stamp_ms > self.stamp_ms:
            self.clock_ms += stamp_ms - self.stamp_ms
        self.stamp_ms = stamp_ms
        self.next_offset = offset + 1
        return self.clock_ms

    def load(self, keys: Iterable[Key]) -> None:
        """Bring the states of *keys*, none of them in memory, in from what is stored."""
        wanted = [(key, _stored_key(key)) for key in keys]
        clients = []
        values = self._reader.counters([name for _, name in wanted])
        for (key, name), value in zip(wanted, values, strict=True):
            state = self.states[key] = decode_state(value) if value is not None else State()
            state.size = _size(name, value or b"")
            self.size += state.size
            if isinstance(key, str):
                clients.append((state, b"client\0" + name + b"\0"))
        # One read for all of them, where each would ask for its own limits when it is resolved.
        histories = self._reader.policies([name for _, name in clients])
        for (state, name), history in zip(clients, histories, strict=True):
            state.own = history is not None or name in self._policies

    def resolve(self, state: State, check: Check, position: int) -> None:
        """Find the policy that *check* is held to at *position*, and note it in *state*.

        With a resource: the client's own for it, the plan's, the default's; then, as without one: the
        client's, the plan's, the default, the built-in default.
        """
        state.epoch, state.plan, state.shaped = self.epoch, check.plan, False
        for resource in (check.resource, "") if check.resource else ("",):
            found = None
            if state.own or check.resource:
                found = _in_force(self._history_of(UpdateKey("client", check.client, resource)), position)
            if found is None:
                found = self._shared(check.plan, resource, position)
            if found is not None:
                state.policy, state.version = found
                return
        state.policy, state.version = self.flushed.default, BUILT_IN

    def standing(self, check: Check) -> dict[str, Any]:
        """How *check*, which was just judged, stands: what the reply to a single peek tells besides.

        ``held_to``: kind, id and resource of the limits that hold; ``None``: the built-in ones. ``windows``:
        each limit, what counts against it, and in how many ms nothing will, if no more is spent.
        """
        state, windows = self.states[state_key(check)], []
        for limit in state.policy.limits:
            used, reset_ms = usage(state.windows, limit, self.clock_ms)
            windows.append({"limit": str(limit), "used": used, "reset_after_ms": reset_ms})
        return {"held_to": self._held_to(check), "windows": windows}

    def _held_to(self, check: Check) -> UpdateKey | None:
        """Where on :meth:`resolve`'s ladder the limits of *check* stand; ``None``: at its end."""
        position = self.next_offset << POSITION_BITS
        for resource in (check.resource, "") if check.resource else ("",):
            for kind, id_ in (("client", check.client), ("plan", check.plan), ("default", "")):
                key = UpdateKey(kind, id_, resource)
                if (id_ or kind == "default") and _in_force(self._history_of(key), position) is not None:
                    return key
        return None

    def _shared(self, plan: str, resource: str, position: int) -> tuple[Policy, int] | None:
        """What those without limits of their own are held to: the plan's, else the default's."""
        key = (plan, resource)
        if key not in self._resolved:
            histories = [self._history_of(UpdateKey("default", "", resource))]
            if plan:
                histories.insert(0, self._history_of(UpdateKey("plan", plan, resource)))
            found = (_in_force(history, position) for history in histories)
            self._resolved[key] = next(filter(None, found), None)
        return self._resolved[key]

    def apply(self, update: Update, position: int) -> bool:
        """Put *update* in force from *position* on; returns whether it was new.

        The owner may relay an update twice: one whose version has come by already changes nothing.
        """
        if update.version <= self.applied:
            return False
        self.applied = update.version
        self.epoch += 1
        self._resolved.clear()
        if update.kind == "reset":
            self._reset(update, position)
            return True
        key = update.key
        if key.kind == "client" and key.id in self.states:
            self.states[key.id].own = True
        history = self._history_of(key)
        last = history[-1] if history else _NEVER
        # Two gateways may change a plan at once, and their updates come by in either order: the later one of
        # its home partition stays, in all partitions.
        outdated = 0 <= update.order < last.order
        if last.version < update.version and not outdated:
            # What came before the marker is never asked for again, but for the last of it.
            horizon = self.flushed.next_offset << POSITION_BITS
            while len(history) > 1 and history[1].position <= horizon:
                del history[0]
            history.append(InForce(position, update.version, update.policy, update.order))
            self._policies[_policy_key(key)] = history
            self._dirty_policies.add(_policy_key(key))
        return True

    def _reset(self, update: Update, position: int) -> None:
        """Empty the client's counters: those of one resource if the update names one, else all."""
        client, resource = update.id, update.resource

        def meant(key: Key) -> bool:
            if isinstance(key, str):
                return key == client and not resource
            return key[0] == client and resource in ("", key[1])

        stored = [_key_of(name) for name, _ in self._reader.counters_of(client.encode())]
        self.load(key for key in stored if meant(key) and key not in self.states)
        for key, state in self.states.items():
            if meant(key) and state.windows and state.position < position:
                state.windows.clear()
                state.shaped = False
                state.position = position
                self.dirty[key] = state

    def _history_of(self, key: UpdateKey) -> list[InForce]:
        return self._stored_history(_policy_key(key))

    def _stored_history(self, name: bytes) -> list[InForce]:
        history = self._policies.get(name)
        if history is None:
            [value] = self._reader.policies([name])
            if value is None:
                return []
            history = self._policies[name] = decode_history(value)
        return history

    def take_dirty(self) -> tuple[Marker, Entries]:
        """What changed since the last call, and the marker that goes with it.

        Counters are encoded as they are asked for, so that a large flush need not hold up checks. What was
        judged meanwhile is in them: such a state is ahead of the marker, and its position says so.
        """
        changed, self.dirty = self.dirty, {}
        policies = []
        for name in self._dirty_policies:
            history = self._policies[name]
            policies.append((name, FORMAT + history[-1].position.to_bytes(8) + _pack(history)))
        self._dirty_policies.clear()
        self._overwritten = False
        return self.marker, Entries(self._encoded(changed), policies)

    def _encoded(self, changed: dict[Key, State]) -> Iterator[tuple[bytes, bytes]]:
        for key, state in changed.items():
            # Charged since, it is written with that too.
            self.dirty.pop(key, None)
            name, value = _stored_key(key), encode_state(state)
            size = _size(name, value)
            self.size += size - state.size
            state.size = size
            state.flushes += 1
            yield name, value

    def value_of(self, name: bytes) -> bytes | None:
        """What would now be stored under *name*; ``None`` if no such state is in memory."""
        state = self.states.get(_key_of(name))
        return encode_state(state) if state is not None else None

    def rewrite(self, counters: Iterable[bytes], policies: Iterable[bytes]) -> None:
        """Have these stored keys, and the marker, written again: somebody else wrote over them."""
        self._overwritten = True
        keys = {_key_of(name) for name in counters}
        self.load(key for key in keys if key not in self.states)
        for key in keys:
            state = self.dirty[key] = self.states[key]
            if state.position < 0:
                # Nothing is known here of what the other has written: so it is as of all that was read.
                state.position = (self.next_offset << POSITION_BITS) - 1
        for name in policies:
            if name.count(b"\0") == 2 and self._stored_history(name):
                self._dirty_policies.add(name)

    def forget_idle(self, names: Iterable[bytes]) -> None:
        """Drop the states of *names* that have left all their windows; only between flushes."""
        for name in names:
            key = _key_of(name)
            state = self.states.get(key)
            if state is not None and key not in self.dirty and not is_live(state.windows, self.clock_ms):
                del self.states[key]
                self.size -= state.size

    def forget_clean(self, keep: int) -> None:
        """Drop states until the others take no more memory than *keep* quiet ones would.

        Those longest in memory first, but what was charged again, in another flush than the first, gets
        another round (the *clock* algorithm): it costs nothing while all fit. What was only refused or looked
        at is as if not used: reading it again costs little.

        Only between flushes: what a flush is writing is not dirty any more and not yet stored.
        """
        states, dirty = self.states, self.dirty
        bound = keep * QUIET_BYTES
        size = self.size
        gone, spared = [], []
        for key, state in states.items():
            if size <= bound:
                break
            if state.flushes > 1:
                spared.append(key)
            elif key not in dirty:
                gone.append(key)
                size -= state.size
        self.size = size
        for key in gone:
            del states[key]
        for key in spared:
            state = states[key] = states.pop(key)
            state.flushes = 0
        if len(self._policies) > keep:
            for name in [name for name in self._policies if name not in self._dirty_policies]:
                del self._policies[name]
        if len(self._resolved) > keep:
            self._resolved.clear()


def _in_force(history: list[InForce], position: int) -> tuple[Policy, int] | None:
    """Policy and version in force at *position*; ``None`` if there was none, or it was deleted."""
    for entry in reversed(history):
        if entry.position <= position:
            return None if entry.policy is None else (entry.policy, entry.version)
    return None


def _policy_key(key: UpdateKey) -> bytes:
    return "\0".join((key.kind, key.id, key.resource)).encode()
