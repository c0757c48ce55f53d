"""Bodies of requests to ``/json``: valid ones in many forms, and broken ones."""

from __future__ import annotations

import json

from hypothesis import strategies as st

TEXTS = st.text(max_size=3) | st.sampled_from(["alice", "a" * 300, 'a"b', "a\\b", "é", "\u2028", "\0", ""])
_HITS = st.sampled_from([0, 1, 2, 7, 1_000_001, 2**32 - 1, 2**32, 2**63, 2**64, -1, 2.0, 1.5, "2", "x", None])
_ENTRIES = st.fixed_dictionaries({"key": TEXTS, "value": TEXTS}) | st.sampled_from(
    [
        {},
        {"key": "a"},
        {"value": "b"},
        {"key": None, "value": "b"},
        {"key": 1, "value": "b"},
        None,
        {"a": 1},
    ]
)
_DESCRIPTORS = st.fixed_dictionaries(
    {"entries": st.lists(_ENTRIES, max_size=3)},
    optional={
        "hitsAddend": _HITS,
        "hits_addend": _HITS,
        "isNegativeHits": st.sampled_from([True, False, None, 1, "true"]),
        "limit": st.sampled_from([{}, {"requestsPerUnit": 9, "unit": "MINUTE"}, None, 1]),
        "other": st.just(1),
    },
)
_PLAIN = st.fixed_dictionaries(
    {
        "domain": st.sampled_from(["edge", "login", "a"]),
        "descriptors": st.lists(
            st.fixed_dictionaries(
                {
                    "entries": st.lists(
                        st.fixed_dictionaries({"key": st.sampled_from(["user", "path"]), "value": TEXTS}),
                        min_size=1,
                        max_size=3,
                    )
                },
                optional={"hitsAddend": st.integers(0, 5), "isNegativeHits": st.booleans()},
            ),
            min_size=1,
            max_size=3,
        ),
    },
    optional={"hitsAddend": st.integers(0, 5)},
)
_ANY: st.SearchStrategy[object] = st.fixed_dictionaries(
    {"domain": st.sampled_from(["edge", "login", "", None, 1])},
    optional={
        "descriptors": st.lists(_DESCRIPTORS, max_size=3)
        | st.sampled_from([None, {}, [{"entries": []}] * 101]),
        "hitsAddend": _HITS,
        "hits_addend": _HITS,
        "other": st.just(None),
    },
)


def _texts(values: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    return (
        values.map(lambda value: json.dumps(value).encode())
        | values.map(lambda value: json.dumps(value, separators=(",", ":")).encode())
        | values.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    )


def _edited(body: bytes, at: int, piece: bytes) -> bytes:
    at %= len(body) + 1
    return body[:at] + piece + body[at:]


def _twice(body: bytes, name: bytes) -> bytes:
    """Return *body* with another member *name* before the last brace."""
    at = body.rfind(b"}")
    return body[:at] + b', "' + name + b'": 3' + body[at:]


_PIECES = [b'"', b"\\", b" ", b"\xff", b"\\ud800", b"\\u0041", b",", b"\xef\xbb\xbf", b'\\"', b"0"]
_NAMES = [b"hitsAddend", b"domain", b"descriptors", b"hits_addend"]
_plain_bodies = _texts(_PLAIN)
envoy_bodies = st.one_of(
    _plain_bodies,
    _plain_bodies,
    _texts(_ANY),
    st.builds(_edited, _plain_bodies, st.integers(0, 200), st.sampled_from(_PIECES)),
    st.builds(_twice, _plain_bodies, st.sampled_from(_NAMES)),
    st.sampled_from([b"", b"null", b"[]", b"7", b"NaN", b'{"domain": "edge"']),
    st.binary(max_size=4),
)
"""Bodies of at most a few kilobytes."""
