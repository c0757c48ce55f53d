"""A trace in the headers of a record. No content of the headers can cause an error."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from stoplog.tracing import context_from, context_of, trace_headers

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Message:
    def __init__(self, headers: list[tuple[str, bytes | None]] | None) -> None:
        self._headers = headers

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._headers


class Poisoned:
    def headers(self) -> None:
        raise SystemError("returned a result with an exception set")


def test_context_of_a_record_is_the_span_that_wrote_it() -> None:
    context = context_of(Message([("other", b"x"), ("traceparent", TRACEPARENT), ("tracestate", b"a=1")]))
    assert context is not None
    headers = trace_headers(trace.get_current_span(context))
    assert headers == [("traceparent", TRACEPARENT), ("tracestate", b"a=1")]


@pytest.mark.parametrize(
    "message",
    [
        Message(None),
        Message([]),
        Message([("traceparent", None)]),
        Message([("traceparent", TRACEPARENT[:-2] + b"00")]),
        Message([("traceparent", b"\xff" * 55)]),
        Message([("traceparent", TRACEPARENT + b"-" + b"x" * 600)]),
        Poisoned(),
    ],
    ids=("none", "empty", "null", "not sampled", "garbage", "too long", "a name that is not UTF-8"),
)
def test_context_of_a_record_without_a_trace_is_none(message: Message | Poisoned) -> None:
    assert context_of(message) is None


@given(st.binary(max_size=600) | st.just(TRACEPARENT), st.binary(max_size=600))
def test_context_of_any_headers_raises_nothing(traceparent: bytes, tracestate: bytes) -> None:
    context_from({"traceparent": traceparent, "tracestate": tracestate})


def test_import_without_opentelemetry_names_the_packages_to_install() -> None:
    program = "import sys; sys.modules['opentelemetry.sdk.trace'] = None\nimport stoplog.tracing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'stoplog[tracing]', or unset the variable" in done.stderr
