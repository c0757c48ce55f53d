"""Answer ``POST /json``, Envoy's rate limit service as JSON, without the web framework.

A request on the fast path is answered as by the route (:mod:`stoplog_gateway.http.routes.envoy_json`), with
the same functions.

Without time, the checks of a request fail open (or closed) at once. They are still published and counted if
its body is plain (:func:`~stoplog_gateway.envoy.call.parse_plain`) and has at most 4 KiB. For any other body
there is no time, because protobuf parses it in Python. Then only the mapping's choice for each descriptor is
found, and of a large body not even that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.fail_open import ALLOW, DENY, OnUnavailable
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput, SettingsError
from stoplog_gateway.envoy import rate_limit_service
from stoplog_gateway.envoy.call import parse_plain
from stoplog_gateway.envoy.mapping import MAX_READ_IN_OVERLOAD, DescriptorMapping
from stoplog_gateway.http.bugs import render_after_bug
from stoplog_gateway.http.failing_closed import asks_to_fail_closed
from stoplog_gateway.http.handlers import Handler, SendResponse
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.proxy_request import ProxyRequest
from stoplog_gateway.http.request_body import MAX_SLOW_BODY, decode, media_type, require_json, too_large
from stoplog_gateway.http.routes.envoy_json import malformed, parse_call, render_failed_call
from stoplog_gateway.http.turns import Turns

if TYPE_CHECKING:
    from stoplog_gateway.envoy.service import RateLimitService


class _LargeRequest(msgspec.Struct):
    """The parts of a ``RateLimitRequest`` that are read if it is large."""

    domain: str | None = None
    descriptors: list[msgspec.Raw] | None = None


class _Entry(msgspec.Struct):
    key: str | None = None
    value: str | None = None


class _Descriptor(msgspec.Struct):
    entries: list[_Entry] | None = None


class _Request(msgspec.Struct):
    """The parts of a ``RateLimitRequest`` that decide which of its descriptors fail closed."""

    domain: str | None = None
    descriptors: list[_Descriptor] | None = None

    @property
    def entries(self) -> list[list[tuple[str, str]]]:
        """The entries of each descriptor."""
        return [
            [(entry.key or "", entry.value or "") for entry in descriptor.entries or ()]
            for descriptor in self.descriptors or ()
        ]


_request_decoder: Final = msgspec.json.Decoder(_Request)
_large_request_decoder: Final = msgspec.json.Decoder(_LargeRequest)


class EnvoyCalls:
    """Handle requests to ``/json``, whose tokens are checked.

    Args:
        limiter: Limiter that answers the checks.
        turns: Shares the event loop between requests.
        mapping: Maps descriptors to clients.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(
        self, limiter: Limiter, turns: Turns, mapping: DescriptorMapping, *, legacy_headers: bool
    ) -> None:
        self._limiter = limiter
        self._turns = turns
        self._mapping = mapping
        self._legacy_headers = legacy_headers

    @cached_property
    def service(self) -> RateLimitService | None:
        """The service for Envoy. It imports protobuf, so only the first request makes it."""
        try:
            return rate_limit_service(self._limiter, self._mapping, legacy_headers=self._legacy_headers)
        except SettingsError:  # without the extra, the route states the remedy
            return None

    def handler_for(self, asked: ProxyRequest, length: int) -> Handler | None:
        """Return the handler of a request with a JSON body, or ``None`` if it must take the route.

        Args:
            asked: The request. Of its header fields, those that matter are enough
                (:func:`~stoplog_gateway.http.known_heads.matters`).
            length: Bytes of its body.
        """
        if length > MAX_READ_IN_OVERLOAD or self.service is None:
            return None
        try:
            on_unavailable = _on_unavailable(asked)
        except InvalidInput:
            return None
        return partial(self._handle, asked, on_unavailable)

    def _handle(
        self, asked: ProxyRequest, on_unavailable: OnUnavailable, body: bytes, send: SendResponse
    ) -> None:
        domain: str | bytes = ""
        try:
            service = self._require_service()
            if not self._turns.admits_check():
                self._answer_at_once(asked, on_unavailable, body, send)
                return
            call = parse_call(body)
            domain = call.domain
            pending = service.ask(call, on_unavailable)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failure(exc, asked, domain))
        else:
            self._send_answers(asked, domain, send, pending, 0)

    def handle_at_once(self, asked: ProxyRequest, body: bytes, send: SendResponse) -> None:
        """Handle a request for which there is no time."""
        try:
            require_json(media_type(asked.headers))
            on_unavailable = _on_unavailable(asked)
        except (InvalidInput, ProblemError) as exc:
            send(_render_error(exc))
        else:
            self._answer_at_once(asked, on_unavailable, body, send)

    def refuse_large(self, asked: ProxyRequest, _: bytes, send: SendResponse) -> None:
        """Refuse a request with a body that is too large."""
        try:
            require_json(media_type(asked.headers))
        except ProblemError as exc:
            error = exc
        else:
            error = too_large(MAX_SLOW_BODY)
            error.headers = []  # the protocol closes the connection, and says so
        send(_render_error(error))

    def _answer_at_once(
        self, asked: ProxyRequest, on_unavailable: OnUnavailable, body: bytes, send: SendResponse
    ) -> None:
        domain: str | bytes = ""
        pending: Sequence[PendingAnswer]
        try:
            service, closed = self._require_service(), on_unavailable == DENY
            if len(body) > MAX_READ_IN_OVERLOAD:
                large = _decode_request(_large_request_decoder, body)
                domain = large.domain or ""
                pending = service.answer_in_overload(
                    domain, len(large.descriptors or ()), fails_closed=closed
                )
            elif (call := parse_plain(body)) is not None:
                domain = call.domain
                pending = service.ask(call, on_unavailable, has_time=False)
            else:
                request = _decode_request(_request_decoder, body)
                domain = request.domain or ""
                pending = service.map_in_overload(domain, request.entries, fails_closed=closed)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failure(exc, asked, domain))
        else:
            self._send_answers(asked, domain, send, pending, 0)

    def _send_answers(
        self,
        asked: ProxyRequest,
        domain: str | bytes,
        send: SendResponse,
        pending: Sequence[PendingAnswer],
        first: int,
        _: object = None,
    ) -> None:
        """Send the response once all answers are there; those before index *first* are."""
        for index in range(first, len(pending)):
            item = pending[index]
            if not isinstance(item, Answer) and not item.done():
                item.add_done_callback(partial(self._send_answers, asked, domain, send, pending, index + 1))
                return
        try:
            rendered = self._require_service().render([unwrap(item) for item in pending])
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = self._render_failure(exc, asked, domain)
        send(rendered)

    def _render_failure(self, exc: Exception, asked: ProxyRequest, domain: str | bytes) -> Rendered:
        return (
            render_failed_call(self._require_service(), exc, domain)
            or render_error(exc)
            or render_after_bug(asked.scope, self._limiter.metrics)
        )

    def _require_service(self) -> RateLimitService:
        assert self.service is not None
        return self.service


def _render_error(exc: Exception) -> Rendered:
    rendered = render_error(exc)
    assert rendered is not None
    return rendered


def _on_unavailable(asked: ProxyRequest) -> OnUnavailable:
    return DENY if asks_to_fail_closed(asked.scope) else ALLOW


T = TypeVar("T")


def _decode_request(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode the parts of a ``RateLimitRequest`` that *decoder* reads.

    Raises:
        ProblemError: 400, the body is no such request.
    """
    try:
        return decode(decoder, body)
    except InvalidInput as exc:
        raise malformed(str(exc)) from exc
