"""Spans of OpenTelemetry: where they go, and how a trace travels in a record's headers (W3C Trace Context).

Imported only where ``STOPLOG_TRACING`` is on; the packages come with the extra ``tracing``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any, Final

from stoplog.errors import SettingsError, UndecodableRecord
from stoplog.wire.format import headers_of

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:
    raise SettingsError(
        f"STOPLOG_TRACING is on and {exc.name} is not there: pip install '/path/to/stoplog[tracing]', or "
        "unset it"
    ) from exc

FIELDS: Final = ("traceparent", "tracestate")
"""Headers of a record, and fields of an HTTP request."""

_LONGEST: Final = 512
"""Bytes of one of them; longer ones are a mistake, and reading them costs every other check's time."""

_LAST_S: Final = 1.0
"""What is not exported this long after a stop is lost: a collector that is gone must not delay it."""

_propagator: Final = TraceContextTextMapPropagator()


def start(service: str, node: str) -> Callable[[], None]:
    """Have this process's spans sent by OTLP over HTTP.

    Where to, how many are kept and how they are sampled is read by OpenTelemetry from its own variables:
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` (http://localhost:4318), ``OTEL_TRACES_SAMPLER`` (all), …

    Args:
        service: ``service.name``, unless ``OTEL_SERVICE_NAME`` says otherwise.
        node: ``service.instance.id``.

    Returns:
        What sends the last ones; blocks for a second at most.
    """
    # It would tell of each try to reach a collector; that it failed is an ERROR.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    ours = Resource({"service.name": service, "service.instance.id": node})
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        last = Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_S)

    return stop


def headers_to(span: trace.Span) -> list[tuple[str, bytes]]:
    """The headers by which a record's reader goes on with *span*."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return [(name, value.encode()) for name, value in carrier.items()]


def context_of(message: Any) -> Context | None:
    """What *message*, a record as consumed, goes on with; ``None`` if that is nothing, or not sampled.

    Whatever its headers hold, none of it is an error: a trace decides nothing.
    """
    try:
        headers = headers_of(message)
    except UndecodableRecord:
        return None
    context = context_from({name: raw for name, raw in headers or () if name in FIELDS and raw})
    if context is None or not trace.get_current_span(context).get_span_context().trace_flags.sampled:
        return None
    return context


def context_from(fields: Mapping[str, bytes]) -> Context | None:
    """What header fields of any protocol, named in lower case, go on with; ``None`` if they name no trace."""
    if FIELDS[0] not in fields:
        return None
    carrier = {name: raw.decode("latin-1") for name, raw in fields.items() if len(raw) <= _LONGEST}
    return _propagator.extract(carrier, Context())
