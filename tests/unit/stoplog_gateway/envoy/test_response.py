"""The JSON of a response has the same bytes as protobuf's."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson
from hypothesis import given
from hypothesis import strategies as st
from stoplog_gateway.envoy.response import message_of, render_answers

from stoplog.client.answer import Answer
from stoplog.client.fail_open import FAIL_CLOSED, FAIL_OPEN

numbers = st.integers(0, 3) | st.sampled_from([100, 2**32 - 1, 2**32, 2**53])
answers = st.builds(
    Answer,
    st.booleans(),
    numbers,
    numbers,
    st.integers(0, 2_001),
    st.integers(0, 2_001) | st.none(),
    st.just(7),
    st.just(False),
    st.none(),
) | st.sampled_from([*FAIL_OPEN.values(), *FAIL_CLOSED.values(), Answer(True, None, None, 0, 0, 7)])


@given(st.lists(answers, min_size=1, max_size=4), st.booleans())
def test_response_in_json_has_the_bytes_that_protobuf_writes(each: list[Answer], legacy: bool) -> None:
    message = message_of(each, legacy=legacy)
    status, headers, content = render_answers(each, legacy=legacy)
    assert content == MessageToJson(message, indent=None).encode()
    assert status == (200 if all(answer.allowed for answer in each) else 429)
    own = [(header.key.encode(), header.value.encode()) for header in message.response_headers_to_add]
    assert headers == [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
        *own,
    ]
