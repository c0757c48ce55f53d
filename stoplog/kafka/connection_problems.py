"""Why a request to Kafka failed, in the words of the settings.

librdkafka reports refused credentials to a callback, and the request that waits for the connection only times
out. So the reports are remembered, and explain the request's failure. A wrong protocol, and failures of TLS,
are found by a probe.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

from confluent_kafka import KafkaError

_RECENT_S: Final = 30.0
"""Seconds for which a report may explain a failure. A client that is refused tries again sooner."""

_PROBED_S: Final = 5.0
"""Seconds between two probes. Requests may fail more often."""

_REMEDY: Final = "check that the broker at STOPLOG_KAFKA runs"

_ACLS: Final = "grant what `stoplog topics acls` prints for the role of this process"


class ConnectionProblems:
    """Explains failed requests of all clients of one connection. Any thread may use it.

    Args:
        mechanism: Kafka's ``sasl.mechanism``, if any.
        probe: Returns why the servers cannot be used; ``None`` if no cause is found.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        mechanism: str | None,
        probe: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mechanism = mechanism
        self._probe = probe
        self._clock = clock
        self._reported: tuple[float, str | None] = (float("-inf"), None)
        self._probed: tuple[float, str | None] = (float("-inf"), None)

    def record(self, error: KafkaError) -> None:
        """Remember an error that librdkafka reports outside any request, if it names a cause."""
        if (cause := self._cause(error)) is not None:
            self._reported = (self._clock(), cause)

    def known(self) -> str | None:
        """Return the cause that was reported or found last, if that is recent. Do not block."""
        return self._recent(self._reported) or self._recent(self._probed)

    def _recent(self, found: tuple[float, str | None]) -> str | None:
        at, cause = found
        return cause if self._clock() - at <= _RECENT_S else None

    def explain(self, error: KafkaError) -> str:
        """Return why a request failed with *error*, and the remedy. Blocks for some seconds at most."""
        if error.code() >= 0:  # a broker has answered
            return self._cause(error) or f"{error.str()}: see the broker's log"
        return self._recent(self._reported) or self._find() or f"{error.str()}: {_REMEDY}"

    def _find(self) -> str | None:
        at, found = self._probed
        if self._clock() - at > _PROBED_S:
            found = self._probe()
            self._probed = (self._clock(), found)
        return found

    def _cause(self, error: KafkaError) -> str | None:
        text = error.str()
        if error.name().endswith("_AUTHORIZATION_FAILED"):
            return f"{text}: {_ACLS}"
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
            return None if _is_ambiguous(text) else self._refused(_without_place(text))
        if re.search(r"alert .*(certificate|unknown ca)", text):
            return (
                f"the broker refused this client's certificate ({_without_place(text)}): set "
                f"STOPLOG_KAFKA_CERT_FILE and STOPLOG_KAFKA_KEY_FILE to a certificate that is valid and that "
                f"the broker trusts"
            )
        return None

    def _refused(self, text: str) -> str:
        if "Unsupported SASL mechanism" in text:
            accepted = text.rpartition(": ")[2]
            return (
                f"the broker does not accept STOPLOG_KAFKA_SASL_MECHANISM={self._mechanism}: set one that it "
                f"accepts ({accepted})"
            )
        if self._mechanism != "OAUTHBEARER":
            return (
                f"the broker refused the credentials ({text}): correct STOPLOG_KAFKA_USERNAME and "
                f"STOPLOG_KAFKA_PASSWORD_FILE (or STOPLOG_KAFKA_PASSWORD)"
            )
        if "no token for Kafka" in text:
            return text
        return (
            f"the broker refused the token ({text}): check that it trusts the issuer of "
            f"STOPLOG_KAFKA_OAUTH_TOKEN_URL, and STOPLOG_KAFKA_OAUTH_SCOPE"
        )


def _is_ambiguous(text: str) -> bool:
    """Return whether a failed SASL handshake may have another cause than the credentials.

    A broker that stops or is busy closes the connection (``transport failure``). It answers ``current SASL
    state`` if its listener does not use SASL, but also if a session is renewed twice within a second. The
    probe tells them apart.
    """
    return "mechanism handshake failed" in text and "Unsupported SASL mechanism" not in text


def _without_place(text: str) -> str:
    """Return librdkafka's *text* without its address and its state, which differ from line to line."""
    return re.sub(r"^\S+://\S+: | \(after \d+ms in state \w+\)", "", text)
