"""Answer the requests of proxies without the web framework.

Proxies ask checks at ``/v1/authorize`` and ``/json``. Two methods return how such a request is answered:

- :meth:`Proxies.handler_for`: a plain request, that is a valid one to ``/v1/authorize`` without a body. All
  other requests take the routes, whose functions are used here too. A property test compares the responses
  byte by byte.
- :meth:`Proxies.at_once`: any other request for which a turn of the event loop has no time. Its checks fail
  open (or closed) at once, as those of :mod:`stoplog_gateway.http.fast_path` do. A check of
  ``/v1/authorize`` is still published and counted. A request to ``/json`` is not, because parsing its
  protobuf message takes too long. Without protobuf, only the mapping's choice for each descriptor is found,
  and of a large request not even that. An invalid request gets the same error as from the routes, if the
  fault is in a part that is read. So does a request that a bug prevents.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput, SettingsError
from stoplog.wire.checks import Check
from stoplog_gateway.access.control import AccessControl, Refusal, proxy_token
from stoplog_gateway.access.proxy_paths import AUTHORIZE, ENVOY_JSON, is_authorize
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.envoy import rate_limit_service
from stoplog_gateway.envoy.mapping import MAX_READ_IN_OVERLOAD, DescriptorMapping
from stoplog_gateway.http.auth import refuse_check_at_once
from stoplog_gateway.http.bugs import render_after_bug
from stoplog_gateway.http.failing_closed import asks_to_fail_closed
from stoplog_gateway.http.handlers import AtOnce, Handler, SendResponse, without_body
from stoplog_gateway.http.overload import MAX_BODY
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.proxy_request import ProxyRequest
from stoplog_gateway.http.request_body import MAX_SLOW_BODY, decode, media_type, require_json, too_large
from stoplog_gateway.http.request_head import split_target
from stoplog_gateway.http.routes.authorize import client_in, parse_query, render_authorization
from stoplog_gateway.http.routes.envoy_json import denial_after_bug, malformed, no_descriptor, render_response
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


_PLAIN_TARGET: Final = re.compile(rb"%s(?:[?/][!\"$-~]*)?" % AUTHORIZE.encode())
"""Targets of printable ASCII without a fragment."""


class Proxies:
    """Handle the requests of proxies.

    Args:
        limiter: Limiter that answers the checks.
        access: Decides about each request.
        turns: Shares the event loop between requests.
        mapping: Decides which descriptors of Envoy fail closed.
        client_header: Header field with the client id.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(
        self,
        limiter: Limiter,
        access: AccessControl,
        turns: Turns,
        mapping: DescriptorMapping,
        *,
        client_header: str,
        legacy_headers: bool,
    ) -> None:
        self._limiter = limiter
        self._access = access
        self._turns = turns
        self._client_header = client_header
        self._legacy_headers = legacy_headers
        self._mapping = mapping

    @cached_property
    def _service(self) -> RateLimitService | None:
        """The service for Envoy. It imports protobuf, so only the first request makes it."""
        try:
            return rate_limit_service(self._limiter, self._mapping, legacy_headers=self._legacy_headers)
        except SettingsError:  # without the extra, the route states the remedy
            return None

    def handler_for(self, method: bytes, target: bytes, headers: Headers) -> Handler | None:
        """Return the handler of a request without a body, or ``None`` if it must take the routes.

        Args:
            method: Its method.
            target: Its target, with its query.
            headers: All its header fields, with names in lower case.
        """
        if _PLAIN_TARGET.fullmatch(target) is None or not self._access.permits_proxy(headers):
            return None
        path, query = split_target(target)
        # To the routes, HEAD is GET.
        text = "GET" if method == b"HEAD" else method.decode("latin-1")
        asked = ProxyRequest(text, path.decode("utf-8", "replace"), query, headers)
        try:
            check = self._authorize(asked)
        except (InvalidInput, ProblemError):
            return None
        handler = partial(self._handle_check, asked, *check)
        return without_body(handler) if method == b"HEAD" else handler

    def _handle_check(
        self, asked: ProxyRequest, check: Check, fails_closed: bool, _: bytes, send: SendResponse
    ) -> None:
        try:
            ask = self._limiter.ask if self._turns.admits_check() else self._limiter.answer_at_once
            pending = ask(check, fails_closed)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failure(exc, asked))
        else:
            self._respond(asked, send, pending)

    def at_once(
        self, method: bytes, path: bytes, query: bytes, headers: Headers, address: str | None
    ) -> AtOnce | None:
        """Return how to answer a request without time for it, or ``None`` if it is none of a proxy.

        Args:
            method: Its method.
            path: Its path, without percent-encoding.
            query: Its query.
            headers: All its header fields, with names in lower case.
            address: IP address of the caller, if it is known.
        """
        text = path.decode("latin-1")
        asked = ProxyRequest(method.decode("latin-1"), text, query, headers, address)
        if is_authorize(text):
            handle = partial(self._handle_at_once, self._authorize_at_once, asked)
            return AtOnce(handle, MAX_BODY, handle)  # the body is that of the proxy's caller
        if text == ENVOY_JSON and method == b"POST" and self._service is not None:
            return AtOnce(
                partial(self._handle_at_once, self._answer_envoy, asked),
                MAX_SLOW_BODY,
                partial(self._handle_at_once, self._refuse_large, asked),
            )
        return None

    def _handle_at_once(
        self,
        handle: Callable[[ProxyRequest, bytes], Rendered | PendingAnswer],
        asked: ProxyRequest,
        body: bytes,
        send: SendResponse,
    ) -> None:
        try:
            decision = self._access.decide(Scope.CHECK, proxy_token(asked.headers), None)
            if isinstance(decision, Refusal):
                raise refuse_check_at_once(self._access, decision, asked.address, for_proxies=True)
            result = handle(asked, body)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            result = self._render_failure(exc, asked)
        if isinstance(result, Rendered):
            send(result)
        else:
            self._respond(asked, send, result)

    def _respond(self, asked: ProxyRequest, send: SendResponse, pending: PendingAnswer) -> None:
        """Send the response once the answer is there."""
        if isinstance(pending, Answer):
            self._send_answer(asked, send, pending)
        else:
            pending.add_done_callback(partial(self._send_answer, asked, send))

    def _send_answer(self, asked: ProxyRequest, send: SendResponse, pending: PendingAnswer) -> None:
        try:
            rendered = render_authorization(unwrap(pending), legacy=self._legacy_headers)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = self._render_failure(exc, asked)
        send(rendered)

    def _render_failure(self, exc: Exception, asked: ProxyRequest) -> Rendered:
        return render_error(exc) or render_after_bug(asked.scope, self._limiter.metrics)

    def _authorize(self, asked: ProxyRequest) -> tuple[Check, bool]:
        """Return the check in a request to ``/v1/authorize``, and whether it fails closed.

        Raises:
            ProblemError: The client id is missing or invalid, or a parameter is unknown or invalid.
            InvalidInput: A parameter or a header field is invalid.
        """
        client = client_in(asked.headers, self._client_header)
        closed = asks_to_fail_closed(asked.scope)
        # Below that path, the query is that of the proxy's caller.
        query = parse_query(asked.query if asked.path == AUTHORIZE else b"")
        return Check(client, query.cost, query.plan or "", query.resource or ""), closed

    def _authorize_at_once(self, asked: ProxyRequest, _: bytes) -> PendingAnswer:
        return self._limiter.answer_at_once(*self._authorize(asked))

    def _refuse_large(self, asked: ProxyRequest, _: bytes) -> Rendered:
        require_json(media_type(asked.headers))
        error = too_large(MAX_SLOW_BODY)
        error.headers = []  # the protocol closes the connection, and says so
        raise error

    def _answer_envoy(self, asked: ProxyRequest, body: bytes) -> Rendered:
        require_json(media_type(asked.headers))
        closed = asks_to_fail_closed(asked.scope)
        service = self._service
        assert service is not None
        request: _Request | _LargeRequest
        if len(body) > MAX_READ_IN_OVERLOAD:
            request = _decode_request(_large_request_decoder, body)
        else:
            request = _decode_request(_request_decoder, body)
        domain = request.domain or ""
        try:
            if isinstance(request, _LargeRequest):
                count = len(request.descriptors or ())
                response = service.answer_in_overload(domain, count, fails_closed=closed)
            else:
                response = service.map_in_overload(domain, request.entries, fails_closed=closed)
            return render_response(response)
        except InvalidInput as exc:
            raise no_descriptor(exc) from exc
        except Exception:
            rendered = denial_after_bug(service, domain)
            if rendered is None:
                raise
            return rendered


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
