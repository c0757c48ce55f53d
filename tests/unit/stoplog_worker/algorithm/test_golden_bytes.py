"""The bytes of each stored value. A change needs a new format version: older workers read these values."""

from __future__ import annotations

import msgspec
from stoplog_worker.algorithm.hold_set import REFUNDED, Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import (
    Marker,
    PolicyChange,
    State,
    decode_history,
    decode_marker,
    decode_state,
    encode_history,
    encode_key,
    encode_marker,
    encode_policy_key,
    encode_state,
    expires_at_ms,
    position_of,
    without_charges,
)

from stoplog.policy import UNLIMITED, parse_policy
from stoplog.wire.holds import LEASE, RESERVATION
from stoplog.wire.limit_updates import UpdateKey

NOW = 1_764_000_000_123

STATE = bytes.fromhex(
    "01 0000000000070003"  # format, position: offset 7, index 3
    "92"  # two windows
    "94 ce0036ee80 cf0000019ab6ced6fb"  # an hour, kept until NOW + 3,600,000
    "ce01c09bc0 ce000f4240"  # tick 29,400,000: 1,000,000 requests
    "98 cdea60 00"  # a minute, in use
    "ce69248100 03"  # tick 1,764,000,000: 1 + 2 requests
    "01 cd012c"  # one tick later: 300
    "3b ce00011170"  # 59 ticks later: 70,000
)
CHARGED_STATE = bytes.fromhex(
    "01 0000000000070003"
    "92"
    "94 cdea60 00 ce69248100 01"  # a minute: 1 request in tick 1,764,000,000
    "92 01 7b"  # the newest charge: 123 ms after the beginning of that tick
)
HELD_STATE = bytes.fromhex(
    "02 0000000000070003"  # format of a state with holds, position
    "92"  # windows and holds
    "92 94 cdea60 00 ce69248100 01 92 01 7b"  # as in a state without holds
    "93"  # three holds: id, kind, number of the ask, end, units
    "95 93 cf1122334455667788 07 01 00 0c cf0000019ab697f3c3 28"  # a lease of 40
    "95 93 07 08 02 01 00 cf0000019ab698d263 cd012c"  # a reservation of 300
    "95 93 07 09 00 03 04 cf0000019ab698d2db 00"  # a refund that returned 4
)
EMPTY_STATE = bytes.fromhex("01 0000000000050000 90")
HISTORY = bytes.fromhex(
    "01 0000000111710000"  # format, position of the last change
    "94"  # four changes
    "94 ce00040000 02 91 91 92 64 cdea60 ff"  # 100/minute, without an order
    "94 ce00090000 03 c0 ff"  # deleted
    "94 cf0000000111700000 cd012c 91 92 92 cd03e8 ce0036ee80 92 0a cd03e8 0c"  # 1000/hour and 10/second
    "94 cf0000000111710000 cd012d 91 90 0d"  # unlimited
)
MARKER = bytes.fromhex(
    "01 0000000111720000"  # format, position: the first record not applied
    "98 ce00011172 cf0000019ab697e9c8 cf0000019ab697e87b cd012d"  # next offset, clock, stamp, applied
    "a4 5a6d3976"  # id of checks
    "91 91 92 64 cdea60"  # 100/minute
    "a4 596d4679"  # id of limit-updates
    "82 a8 636f756e74657273 a3 593238 a8 706f6c6963696573 a3 634738"  # ids of the changelogs
)
FIRST_MARKER = bytes.fromhex("01 0000000000000000 98 00 00 ff ff a4 5a6d3976 91 91 92 64 cdea60 a0 80")


def test_state_with_two_windows_has_golden_bytes() -> None:
    minute = Window(60_000)
    for after_ms, cost in ((0, 1), (0, 2), (1_500, 300), (59_999, 70_000)):
        minute.charge(NOW + after_ms, cost)
    hour = Window(3_600_000, kept_until_ms=NOW + 3_600_000)
    hour.charge(NOW, 1_000_000)
    state = State(7 << 16 | 3, {3_600_000: hour, 60_000: minute})
    assert encode_state(state) == STATE
    assert encode_state(decode_state(STATE)) == STATE
    assert decode_state(STATE).windows == state.windows
    assert position_of(STATE) == 7 << 16 | 3


def test_state_with_time_of_newest_charge_has_golden_bytes() -> None:
    minute = Window(60_000)
    minute.charge(NOW, 1)
    assert encode_state(State(7 << 16 | 3, {60_000: minute}, NOW)) == CHARGED_STATE
    found = decode_state(CHARGED_STATE)
    assert (found.windows, found.newest_ms) == ({60_000: minute}, NOW)


def test_state_with_holds_has_golden_bytes() -> None:
    minute = Window(60_000)
    minute.charge(NOW, 1)
    held = (
        Hold((0x1122334455667788, 7, 1), LEASE, 12, NOW + 2_888, 40),
        Hold((7, 8, 2), RESERVATION, 0, NOW + 59_880, 300),
        Hold((7, 9, 0), REFUNDED, 4, NOW + 60_000, 0),
    )
    state = State(7 << 16 | 3, {60_000: minute}, NOW, HoldSet(held))
    assert encode_state(state) == HELD_STATE
    assert encode_state(decode_state(HELD_STATE)) == HELD_STATE
    assert tuple(decode_state(HELD_STATE).holds or ()) == held
    assert expires_at_ms(HELD_STATE) == minute.leaves_ms(NOW + 59_880)
    assert without_charges(HELD_STATE) == CHARGED_STATE[:9] + b"\x90"


def test_state_without_charges_has_golden_bytes() -> None:
    assert encode_state(State(5 << 16)) == EMPTY_STATE
    assert decode_state(EMPTY_STATE).windows == {}


def test_policy_history_has_golden_bytes() -> None:
    history = [
        PolicyChange(4 << 16, 2, parse_policy("100/minute")),
        PolicyChange(9 << 16, 3, None),
        PolicyChange(70_000 << 16, 300, parse_policy(["10/second", "1000/1h"]), 12),
        PolicyChange(70_001 << 16, 301, UNLIMITED, 13),
    ]
    assert encode_history(history, 70_001 << 16) == HISTORY
    assert decode_history(HISTORY) == history
    assert position_of(HISTORY) == 70_001 << 16


def test_marker_after_a_signed_update_has_one_more_element() -> None:
    unsigned = decode_marker(MARKER)
    signed = msgspec.structs.replace(unsigned, signed_from=70_000)
    assert unsigned.signed_from == -1
    more = bytes([MARKER[9] + 1]) + MARKER[10:] + bytes.fromhex("ce00011170")
    assert encode_marker(signed) == MARKER[:9] + more
    assert decode_marker(encode_marker(signed)) == signed


def test_marker_has_golden_bytes() -> None:
    marker = Marker(
        next_offset=70_002,
        clock_ms=NOW + 333,
        stamp_ms=NOW,
        applied=301,
        topic_id="Zm9v",
        default=parse_policy("100/minute"),
        updates_id="YmFy",
        changelog_ids={"counters": "Y28", "policies": "cG8"},
    )
    assert encode_marker(marker) == MARKER
    assert decode_marker(MARKER) == marker
    assert position_of(MARKER) == 70_002 << 16


def test_first_marker_has_golden_bytes() -> None:
    marker = Marker(0, 0, -1, -1, "Zm9v", parse_policy("100/minute"))
    assert encode_marker(marker) == FIRST_MARKER
    assert decode_marker(FIRST_MARKER) == marker


def test_marker_of_an_older_worker_without_ids_of_other_topics_is_read() -> None:
    older = bytes.fromhex("01 0000000000000000 96 00 00 ff ff a4 5a6d3976 91 91 92 64 cdea60")
    assert decode_marker(older) == decode_marker(FIRST_MARKER)


def test_keys_have_golden_bytes() -> None:
    assert encode_key("zoë") == b"zo\xc3\xab"
    assert encode_key(("alice", "login")) == b"alice\x00login"
    assert encode_policy_key(UpdateKey("client", "alice", "login")) == b"client\x00alice\x00login"
    assert encode_policy_key(UpdateKey("default")) == b"default\x00\x00"
