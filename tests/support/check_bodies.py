"""Strategies for the bodies of check requests: valid, invalid, and arbitrary bytes."""

from __future__ import annotations

import json

from hypothesis import strategies as st

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(["client_id", "cost", "plan", "resource", "on_unavailable"]) | st.text()
check_bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(field_names, json_values, max_size=4).map(lambda value: json.dumps(value).encode())
)
