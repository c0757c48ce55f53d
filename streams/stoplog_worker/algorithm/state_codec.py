"""The values that are stored for one partition, and their bytes.

A partition has two tables, ``counters`` and ``policies``. Each is a RocksDB database and a changelog topic
with the same keys and values.

Keys, UTF-8. Ids contain no control characters, so a zero byte separates them:

=========  ===================================  ==========================================
table      key                                  value
=========  ===================================  ==========================================
counters   ``client`` or ``client 00 resource``  state
policies   ``kind 00 id 00 resource``           policy history (empty id for the default)
policies   ``00 "marker"``                      marker
=========  ===================================  ==========================================

Each value starts with the same nine bytes, so that two values of a key can be compared without decoding them:

=====  =====  ===============================================================================
bytes  size   meaning
=====  =====  ===============================================================================
0      1      format version, ``01``; ``02`` for a state with holds
1-8    8      position, unsigned, big-endian: ``offset << 16 | index in the batch``
9-     rest   msgpack, below
=====  =====  ===============================================================================

The position is that of the last check or update applied. A marker's position is the first not yet applied. An
entry that replaces a foreign one in the changelog has the highest position that was applied to any entry.

State: an array of windows, longest first. Each window is an array of integers:

============  ===============================================================================
index         meaning
============  ===============================================================================
0             window length, ms
1             0 while a limit uses the window; else the partition time at which it is dropped, ms
2, 4, 6, ...  tick of a charge, as the distance from the tick before (the first: from tick 0)
3, 5, 7, ...  requests charged in that tick
============  ===============================================================================

In format version 2, used for states with holds only, the body is an array of two: this array, and the holds,
oldest first. A hold is an array: its id (``[incarnation, number, index]``), its kind (0 lease, 1
reservation, 2 settled reservation, 3 refund that was made), the number of its ask (what was used, if it is
settled; what was returned by a refund), the partition time at which it ends, and its units.

After the windows there may be an array ``[1, offset]``. The newest charge was made *offset* ms after the
beginning of the last window's newest tick, or after the Unix epoch if that window has no tick. Workers of
version 0.2.0 read this array as a window of 1 ms without charges, and drop it before their next charge.

A later release may have formats from 3 on. Before it writes a value in one, it has to write a marker in it:
nine bytes as above, and an array that begins with the offset of its position. A worker that does not know the
format then stops (:class:`stoplog_worker.state.store.NewerMarker`). Any other value with an unknown first
byte is no value: a worker skips it, counts it, and writes the key again.

Policy history: an array of changes, oldest first, each ``[position, version, policy or nil, order]``. A
policy is the array of :class:`stoplog.policy.Policy`.

Marker: an array of the fields of :class:`Marker`, in their order.

The golden bytes of each are in ``tests/unit/stoplog_worker/algorithm/test_golden_bytes.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from stoplog.policy import Limit, Policy
from stoplog.wire.checks import POSITION_BITS, Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog_worker.algorithm.hold_set import Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Window, Windows, tick_of

FORMAT: Final = b"\x01"
"""First byte of every stored value, except of states with holds."""

FORMAT_HOLDS: Final = b"\x02"
"""First byte of the states with holds."""

_NEWEST_FORMAT: Final = FORMAT_HOLDS[0]
"""The newest format that this release can read."""

MARKER_KEY: Final = b"\x00marker"

_NEWEST: Final = 1
"""In place of a window length: the time of the newest charge. No limit has so short a window."""

BUILT_IN: Final = -1
"""Version of the built-in default policy."""

Key = str | tuple[str, str]
"""The owner of counters: a client, or a client with one resource. The tuple keeps a client whose id looks
like "client/resource" apart from a client with that resource."""


class StateReader(Protocol):
    """Reads the stored values of one partition."""

    def counters(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of *keys* in the table of counters, in their order."""

    def counters_of(self, client: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Return the entries of *client*, with and without a resource."""

    def policies(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the values of *keys* in the table of policies, in their order."""


class Marker(msgspec.Struct, frozen=True, array_like=True):
    """How far a partition's log has been applied, and the partition's clock there.

    Attributes:
        next_offset: First record of ``checks`` not yet applied.
        clock_ms: Partition time, ms since the Unix epoch.
        stamp_ms: Timestamp of the last record, ms; -1 before the first record.
        applied: Highest version of ``limit-updates`` applied; -1 before the first update.
        topic_id: Id of the ``checks`` topic.
        default: The built-in default policy, as it was when the partition was first opened.
        updates_id: Id of the ``limit-updates`` topic, whose offsets are the versions. Empty if an older
            worker wrote the marker.
        changelog_ids: Id of each table's changelog: the marker is only valid together with them. Empty if an
            older worker wrote the marker.
        signed_from: Offset of the first signed update (:mod:`stoplog_worker.algorithm.update_authority`); -1
            before it, and then not stored.
    """

    next_offset: Annotated[int, msgspec.Meta(ge=0, lt=1 << 64 - POSITION_BITS)]
    clock_ms: int
    stamp_ms: int
    applied: int
    topic_id: str
    default: Policy
    updates_id: str = ""
    changelog_ids: dict[str, str] = {}
    signed_from: Annotated[int, msgspec.Meta(ge=-1)] = -1


class PolicyChange(msgspec.Struct, frozen=True, array_like=True):
    """A policy that is in force from a position on.

    Attributes:
        position: First position to which the policy applies.
        version: Offset of the update in ``limit-updates``.
        policy: The policy; ``None`` if the update deleted it.
        order: See :class:`stoplog.wire.limit_updates.Update`.
    """

    position: int
    version: int
    policy: Policy | None
    order: int = -1


NEVER_SET: Final = PolicyChange(0, BUILT_IN, None)
"""The only change of a policy that was never set. It replaces a foreign history in the changelog."""


class State(msgspec.Struct, gc=False):
    """One key's counters, and the policy that was last resolved for it.

    Only position, windows, the time of the newest charge and holds are stored.

    Attributes:
        position: Position of the last check or update applied; -1 before the first.
        windows: Charges, by window length.
        newest_ms: Partition time of the newest charge; 0 if it is not known.
        holds: The holds; ``None`` if there are none. While there are any, ``epoch`` is -1, so that the fold
            notices them.
        epoch: Epoch of the policies in which the policy was resolved.
        plan: The plan for which the policy was resolved.
        limits: The limits of the policy in force that have a window, the longest first.
        in_flight: The reservations that may be open at the same time; ``None`` if that is not limited.
        refundable: The policy in force permits refunds. Like open holds, it keeps ``epoch`` at -1.
        shaped: The windows are exactly those of ``limits``:
            :func:`stoplog_worker.algorithm.sliding_window.reshape` would change nothing.
        own_limits: The client may have limits of its own without a resource. ``False`` saves the lookup.
        size: Estimated memory, bytes, including the key, when last loaded or checkpointed.
        checkpoints: How often the state was checkpointed since it was loaded, or since
            :meth:`stoplog_worker.algorithm.ledger.Ledger.evict` last spared it.
        version: Version of the policy.
    """

    position: int = -1
    windows: Windows = {}
    newest_ms: int = 0
    holds: HoldSet | None = None
    epoch: int = -1
    plan: str = ""
    limits: tuple[Limit, ...] = ()
    in_flight: int | None = None
    refundable: bool = False
    shaped: bool = False
    own_limits: bool = True
    size: int = 0
    checkpoints: int = 0
    version: int = BUILT_IN


_pack = msgspec.msgpack.Encoder().encode
_decode_windows = msgspec.msgpack.Decoder(list[list[int]]).decode
_decode_held = msgspec.msgpack.Decoder(tuple[list[list[int]], tuple[Hold, ...]]).decode
_decode_changes = msgspec.msgpack.Decoder(list[PolicyChange]).decode
_decode_array = msgspec.msgpack.Decoder(list[Any]).decode
_decode_marker = msgspec.msgpack.Decoder(Marker).decode


# --- keys ---


def state_key(check: Check) -> Key:
    """Return the key of the counters that *check* charges."""
    return (check.client, check.resource) if check.resource else check.client


def encode_key(key: Key) -> bytes:
    r"""Return the stored form of *key*.

    >>> encode_key("alice"), encode_key(("alice", "login"))
    (b'alice', b'alice\x00login')
    """
    return key.encode() if isinstance(key, str) else "\0".join(key).encode()


def decode_key(stored: bytes) -> Key:
    """Return the key whose stored form is *stored*.

    A foreign record in the changelog may have a key that is not UTF-8. No check looks up the key returned
    then.
    """
    client, _, resource = stored.decode(errors="replace").partition("\0")
    return (client, resource) if resource else client


def encode_policy_key(key: UpdateKey) -> bytes:
    r"""Return the stored form of *key*.

    >>> encode_policy_key(UpdateKey("plan", "gold", "login"))
    b'plan\x00gold\x00login'
    """
    return "\0".join((key.kind, key.id, key.resource)).encode()


# --- values ---


def position_of(value: bytes) -> int:
    """Return the position of an encoded value."""
    return int.from_bytes(value[1:9])


def is_beyond(key: bytes, value: bytes, log_end: int) -> bool:
    """Return whether an entry is ahead of the log, which ends at *log_end*: no worker can have written it."""
    # A marker stores the first position not applied, every other entry the last one applied.
    return position_of(value) >= (log_end << POSITION_BITS) + (key == MARKER_KEY)


def encode_state(state: State) -> bytes:
    """Encode the position, the windows and the time of the newest charge of *state*."""
    lists: list[Sequence[int]] = []
    last = 0
    for window in state.windows.values():
        flat = [window.window_ms, window.kept_until_ms]
        tick_ms = window.tick_ms
        last = window.window_ms + tick_ms  # when tick 0 leaves
        for leaves, count in zip(window.leave_ms, window.counts):  # noqa: B905 - a fifth slower if strict
            flat += (leaves - last) // tick_ms, count
            last = leaves
        lists.append(flat)
    if last and state.newest_ms:
        lists.append((_NEWEST, state.newest_ms - last + window.window_ms + tick_ms))
    if state.holds is not None:
        return FORMAT_HOLDS + state.position.to_bytes(8) + _pack((lists, list(state.holds)))
    return FORMAT + state.position.to_bytes(8) + _pack(lists)


def _parts(value: bytes) -> tuple[list[list[int]], tuple[Hold, ...]]:
    """Return the arrays of the windows, and the holds, of an encoded state."""
    if value[0] == 1:
        return _decode_windows(value[9:]), ()
    return _decode_held(value[9:])


def decode_state(value: bytes) -> State:
    """Decode a state. Its derived fields have their defaults."""
    windows: Windows = {}
    newest_ms = begins = 0
    lists, holds = (_decode_windows(value[9:]), ()) if value[0] == 1 else _parts(value)
    for flat in lists:
        window_ms = flat[0]
        if window_ms == _NEWEST:
            newest_ms = begins + flat[1]
            break
        tick_ms = tick_of(window_ms)
        leaves = window_ms + tick_ms
        leave_ms = []
        for step in flat[2::2]:
            leaves += step * tick_ms
            leave_ms.append(leaves)
        windows[window_ms] = Window(window_ms, leave_ms, flat[3::2], flat[1])
        begins = leaves - window_ms - tick_ms
    return State(position_of(value), windows, newest_ms, HoldSet(holds) if holds else None)


def is_state(value: bytes) -> bool:
    """Return whether :func:`decode_state` can read *value*, at a fraction of its cost.

    Raises:
        MsgspecError: *value* is not msgpack, or not an array of arrays of integers.
    """
    lists, _ = _parts(value)
    return all(len(flat) >= 2 and not len(flat) % 2 and flat[0] > 0 for flat in lists)


def expires_at_ms(value: bytes) -> int:
    """Return when the last charge of an encoded state leaves its window, partition time; 0 if it has none.

    An open hold is charged at its end. A hold without units is only remembered until then.
    """
    lists, holds = _parts(value)
    last = max((hold.end_ms for hold in holds), default=0)
    charged_ms = max((hold.end_ms for hold in holds if hold.units), default=0)
    for flat in lists:
        if len(flat) > 2:
            last = max(last, flat[0] + tick_of(flat[0]) * (sum(flat[2::2]) + 1))
        if charged_ms and flat[0] != _NEWEST:
            last = max(last, Window(flat[0]).leaves_ms(charged_ms))
    return last


def without_charges(value: bytes) -> bytes:
    """Return an encoded state without charges and holds, and with the position of *value*."""
    return FORMAT + value[1:9] + _pack([])


def estimated_size(key: bytes, value: bytes) -> int:
    """Estimate the memory of a state from its stored *key* and *value*, in bytes, rounded up.

    A charge takes 48 to 80 bytes in memory (Python caches small integers) and 2 to 6 bytes stored. The time
    of the newest charge takes 40 bytes in memory and about 5 stored.
    """
    return (150 if value else 250) + len(key) + 26 * len(value)


def encode_marker(marker: Marker) -> bytes:
    """Encode *marker*."""
    body = marker if marker.signed_from >= 0 else msgspec.structs.astuple(marker)[:-1]
    return FORMAT + (marker.next_offset << POSITION_BITS).to_bytes(8) + _pack(body)


def decode_marker(value: bytes) -> Marker:
    """Decode a marker.

    Raises:
        MsgspecError: *value* is not a marker.
    """
    return _decode_marker(memoryview(value)[9:])


def newer_format(value: bytes) -> int | None:
    """Return the format that a marker names if this release cannot read it; else ``None``.

    The value repeats its position, so that noise is not taken for a marker.

    Args:
        value: A value of at least nine bytes with the key :data:`MARKER_KEY`.
    """
    if value[0] <= _NEWEST_FORMAT:
        return None
    try:
        first, *_ = _decode_array(memoryview(value)[9:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return value[0] if type(first) is int and first << POSITION_BITS == position_of(value) else None


def encode_history(history: list[PolicyChange], position: int) -> bytes:
    """Encode a policy history, which is not empty and has its oldest change first, under *position*."""
    return FORMAT + position.to_bytes(8) + _pack(history)


def decode_history(value: bytes) -> list[PolicyChange]:
    """Decode a policy history: its changes, oldest first, as far back as a replay may need them.

    Raises:
        MsgspecError: *value* is not a policy history.
    """
    return _decode_changes(memoryview(value)[9:])
