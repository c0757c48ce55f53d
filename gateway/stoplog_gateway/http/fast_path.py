"""The hot path: ``POST /v1/check`` and ``/v1/checks`` answered in front of the framework.

The framework's way to a route costs ten times what a check does, and the server's way to the framework (a
task, an event and a dict for each request) as much as a check again. What is plainly a check, JSON whose
length is announced, is answered here: :mod:`stoplog_gateway.http.protocol` hands its body over and is called back with the
response. All else takes the routes in :mod:`stoplog_gateway.http.routes.check`. Both ways read and render by the same
functions, and a property test holds one against the other, byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.limiter import Limiter
from stoplog_gateway.http.problems import render_bug, render_error
from stoplog_gateway.http.request_body import is_json
from stoplog_gateway.http.responses import JSON, Rendered, render
from stoplog_gateway.http.routes.check import parse_check, parse_checks, render_answer

_MAX_DIGITS: Final = 6
"""Digits of a ``Content-Length``: below 1 MB a body is within every route's limit."""

Done = Callable[[Rendered], None]
"""Called once, in the call that asks or later in the event loop."""

Ask = Callable[[bytes, Headers, Done], None]
"""Answers a request by its body and its header fields."""


class HotPath:
    """Answers checks.

    Args:
        limiter: What is asked.
        legacy_headers: As in the settings.
    """

    def __init__(self, limiter: Limiter, *, legacy_headers: bool) -> None:
        self._legacy = legacy_headers
        self._limiter = limiter
        self._asks: Final[dict[bytes, Ask]] = {b"/v1/check": self._check, b"/v1/checks": self._check_list}

    def of(self, url: bytes, headers: Headers) -> Ask | None:
        """Who answers a POST to *url* with these header fields; ``None``: the routes.

        Names are in lower case.
        """
        ask = self._asks.get(url)
        return ask if ask is not None and _is_plain(headers) else None

    def ask(self, body: bytes, headers: Headers) -> PendingAnswer:
        """Ask the limiter what *body* asks."""
        return self._limiter.ask(parse_check(body))

    def ask_many(self, body: bytes, headers: Headers) -> list[PendingAnswer]:
        """Ask the limiter all that *body* asks."""
        return [self._limiter.ask(check) for check in parse_checks(body)]

    def _check(self, body: bytes, headers: Headers, done: Done) -> None:
        try:
            asked = self.ask(body, headers)
        except Exception as exc:  # noqa: BLE001 - _failed logs it
            done(_failed(exc, "/v1/check"))
        else:
            if isinstance(asked, Answer):
                self._answered(done, asked)
            else:
                asked.add_done_callback(partial(self._answered, done))

    def _answered(self, done: Done, asked: PendingAnswer) -> None:
        try:
            rendered = render_answer(unwrap(asked), legacy=self._legacy)
        except Exception as exc:  # noqa: BLE001 - _failed logs it
            rendered = _failed(exc, "/v1/check")
        done(rendered)

    def _check_list(self, body: bytes, headers: Headers, done: Done) -> None:
        try:
            asked = self.ask_many(body, headers)
        except Exception as exc:  # noqa: BLE001 - _failed logs it
            done(_failed(exc, "/v1/checks"))
        else:
            self._all_answered(done, asked, 0)

    def _all_answered(self, done: Done, asked: Sequence[PendingAnswer], first: int, _: object = None) -> None:
        """Render, once all of *asked* from *first* on are there; those before it are."""
        for index in range(first, len(asked)):
            one = asked[index]
            if not isinstance(one, Answer) and not one.done():
                one.add_done_callback(partial(self._all_answered, done, asked, index + 1))
                return
        try:
            rendered = render([unwrap(one) for one in asked])
        except Exception as exc:  # noqa: BLE001 - _failed logs it
            rendered = _failed(exc, "/v1/checks")
        done(rendered)


def _failed(exc: Exception, path: str) -> Rendered:
    return render_error(exc) or render_bug({"method": "POST", "path": path})


def _is_plain(headers: Headers) -> bool:
    """Whether they announce JSON, and not too much; of a repeated field the first counts, as in routes."""
    media = length = None
    for name, value in headers:
        if name == b"content-type" and media is None:
            media = value
        elif name == b"content-length" and length is None:
            length = value
    if media is None or not length or len(length) > _MAX_DIGITS:
        return False
    return media == JSON or is_json(media.decode("latin-1"))
