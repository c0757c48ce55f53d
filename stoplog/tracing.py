"""Export OpenTelemetry spans, and carry a trace in the headers of a record (W3C Trace Context).

Only imported if ``STOPLOG_TRACING`` is on. The packages belong to the extra ``tracing``.
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
        f"STOPLOG_TRACING is on, but {exc.name} is not installed: run pip install 'stoplog[tracing]', or "
        "unset the variable"
    ) from exc

FIELDS: Final = ("traceparent", "tracestate")
"""Headers of a record, and header fields of an HTTP request."""

_MAX_FIELD: Final = 512
"""Bytes of one field. Longer ones are invalid, and reading them would delay other checks."""

_EXPORT_S: Final = 1.0
"""Seconds for the last export at a stop. A missing collector must not delay the stop any longer."""

_propagator: Final = TraceContextTextMapPropagator()


def start(service: str, node: str) -> Callable[[], None]:
    """Export this process's spans with OTLP over HTTP.

    OpenTelemetry's own variables configure the endpoint, the queue and the sampling. Examples are
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` (default http://localhost:4318) and ``OTEL_TRACES_SAMPLER`` (all).

    Args:
        service: ``service.name``, unless ``OTEL_SERVICE_NAME`` is set.
        node: ``service.instance.id``.

    Returns:
        A function that exports the last spans. It blocks for at most a second.
    """
    # Without this, each retry to reach a collector is a log line. A failed export is an ERROR.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    own = Resource({"service.name": service, "service.instance.id": node})
    resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        export = Thread(target=provider.shutdown, daemon=True)
        export.start()
        export.join(_EXPORT_S)

    return stop


def trace_headers(span: trace.Span) -> list[tuple[str, bytes]]:
    """Return the record headers with which a reader continues the trace of *span*."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return [(name, value.encode()) for name, value in carrier.items()]


def context_of(message: Any) -> Context | None:
    """Return the trace context in the headers of *message*, a consumed record.

    ``None`` if there is none, or if it is not sampled. Malformed headers are no error, for a trace must never
    affect a decision.
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
    """Return the trace context in header fields (names in lower case); ``None`` without a ``traceparent``."""
    if FIELDS[0] not in fields:
        return None
    carrier = {name: raw.decode("latin-1") for name, raw in fields.items() if len(raw) <= _MAX_FIELD}
    return _propagator.extract(carrier, Context())
