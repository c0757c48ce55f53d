"""Answer the requests of proxies for which a turn of the event loop has no time.

Proxies ask checks at ``/v1/authorize`` and ``/json``. In overload, these checks fail open (or closed) at
once, as those of :mod:`stoplog_gateway.http.fast_path` do, without the framework. A check of
``/v1/authorize`` is still published and counted. A request to ``/json`` is not, because parsing its protobuf
message takes too long. Without protobuf, only the mapping's choice for each descriptor is found, and of a
large request not even that. An invalid request gets the same error as from the routes, if the fault is in a
part that is read. So does a request that a bug prevents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import ValidationError
from starlette.types import Scope as ASGIScope

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
from stoplog_gateway.http.handlers import AtOnce, SendResponse
from stoplog_gateway.http.overload import MAX_BODY
from stoplog_gateway.http.params import require_utf8_in
from stoplog_gateway.http.problems import invalid_parameter, render_error
from stoplog_gateway.http.request_body import MAX_SLOW_BODY, decode, media_type, require_json, too_large
from stoplog_gateway.http.routes.authorize import AuthorizeQuery, client_in, render_authorization
from stoplog_gateway.http.routes.envoy_json import denial_after_bug, malformed, no_descriptor, render_response

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


class _Asked(NamedTuple):
    """A request of a proxy, without its body."""

    method: str
    path: str
    query: bytes
    headers: Headers
    address: str | None

    @property
    def scope(self) -> ASGIScope:
        """The parts of the request that the functions of the routes need."""
        return {
            "method": self.method,
            "path": self.path,
            "query_string": self.query,
            "headers": self.headers,
        }


class ProxiesInOverload:
    """Handle the requests of proxies without a decision of the store.

    Args:
        limiter: Limiter that counts the checks.
        access: Decides about each request.
        mapping: Decides which descriptors of Envoy fail closed.
        client_header: Header field with the client id.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(
        self,
        limiter: Limiter,
        access: AccessControl,
        mapping: DescriptorMapping,
        *,
        client_header: str,
        legacy_headers: bool,
    ) -> None:
        self._limiter = limiter
        self._access = access
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

    def at_once(
        self, method: bytes, path: bytes, query: bytes, headers: Headers, address: str | None
    ) -> AtOnce | None:
        """Return how to answer a request, or ``None`` if it is none of a proxy.

        Args:
            method: Its method.
            path: Its path, without percent-encoding.
            query: Its query.
            headers: All its header fields, with names in lower case.
            address: IP address of the caller, if it is known.
        """
        text = path.decode("latin-1")
        asked = _Asked(method.decode("latin-1"), text, query, headers, address)
        if is_authorize(text):
            handle = partial(self._handle, self._authorize, asked)
            return AtOnce(handle, MAX_BODY, handle)  # the body is that of the proxy's caller
        if text == ENVOY_JSON and method == b"POST" and self._service is not None:
            return AtOnce(
                partial(self._handle, self._answer_envoy, asked),
                MAX_SLOW_BODY,
                partial(self._handle, self._refuse_large, asked),
            )
        return None

    def _handle(
        self,
        handle: Callable[[_Asked, bytes], Rendered | PendingAnswer],
        asked: _Asked,
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
        elif isinstance(result, Answer):
            self._send_answer(asked, send, result)
        else:
            result.add_done_callback(partial(self._send_answer, asked, send))

    def _send_answer(self, asked: _Asked, send: SendResponse, pending: PendingAnswer) -> None:
        try:
            rendered = render_authorization(unwrap(pending), legacy=self._legacy_headers)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = self._render_failure(exc, asked)
        send(rendered)

    def _render_failure(self, exc: Exception, asked: _Asked) -> Rendered:
        return render_error(exc) or render_after_bug(asked.scope, self._limiter.metrics)

    def _authorize(self, asked: _Asked, _: bytes) -> PendingAnswer:
        client = client_in(asked.headers, self._client_header)
        closed = asks_to_fail_closed(asked.scope)
        # Below that path, the query is that of the proxy's caller.
        query = _parse_query(asked.query) if asked.path == AUTHORIZE else AuthorizeQuery()
        check = Check(client, query.cost, query.plan or "", query.resource or "")
        return self._limiter.answer_at_once(check, closed)

    def _refuse_large(self, asked: _Asked, _: bytes) -> Rendered:
        require_json(media_type(asked.headers))
        error = too_large(MAX_SLOW_BODY)
        error.headers = []  # the protocol closes the connection, and says so
        raise error

    def _answer_envoy(self, asked: _Asked, body: bytes) -> Rendered:
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


@lru_cache(256)
def _parse_query(query: bytes) -> AuthorizeQuery:
    """Return the parameters in *query*, which is the proxy's.

    Raises:
        ProblemError: A parameter is unknown or invalid.
        InvalidInput: The query is not UTF-8, or an id is invalid.
    """
    require_utf8_in("query", query)
    try:
        return AuthorizeQuery.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as exc:
        raise invalid_parameter(exc.errors()[0]) from None
