"""Name the client of a request to ``/v1/authorize``.

The header field of ``STOPLOG_CLIENT_HEADER`` names it. If ``STOPLOG_IDENTIFY`` is set, that chain alone does:
a proxy that is set up for the chain need not overwrite the field, so its caller could send it.
"""

from __future__ import annotations

from functools import lru_cache

from stoplog.asgi.problem import NO_CLIENT
from stoplog.asgi.rate_limit_headers import Headers
from stoplog.identity.addresses import Address, address_id, parse_address
from stoplog.identity.header_text import SeveralValues, header_id
from stoplog.identity.identity import Identified, Identity, Verdict
from stoplog.policy import MAX_ID_BYTES
from stoplog_gateway.http.problems import ProblemError
from stoplog_gateway.settings import GatewaySettings


class ProxyClients:
    """Names the clients of proxies.

    Args:
        client_header: Header field with the client id.
        identity: The settings of client identity; by default, those of an empty environment.
    """

    def __init__(self, client_header: str, identity: Identity | None = None) -> None:
        self._header = client_header
        self._field = client_header.lower().encode()
        self._identity = identity = identity or Identity()
        self._explicit_id = lru_cache(4_096)(self._read)
        self.by_header_alone = not identity.needs_peer
        """Whether a request's client depends on nothing but the header field of the client id."""

    @classmethod
    def of(cls, settings: GatewaySettings) -> ProxyClients:
        """Return what *settings* describe."""
        return cls(settings.client_header, Identity.of(settings))

    def identify(self, peer: str | None, headers: Headers) -> Identified:
        """Return the client of a request, and what the lists of addresses say. Its client may be empty then.

        Args:
            peer: Address of the proxy, if it is known.
            headers: All header fields of the request, with names in lower case.

        Raises:
            ProblemError: 403, no client is named. Every proxy forwards this status.
        """
        if self.by_header_alone:
            return Identified(self._explicit(headers)[0])
        identity = self._identity
        if identity.chain:
            verdict = identity.verdict(peer, headers, peer_is_client=False)
            return Identified(
                "" if verdict is not Verdict.COUNTED else self._by_chain(peer, headers), verdict
            )
        try:
            client, address = self._explicit(headers)
        except ProblemError:
            verdict = identity.verdict(peer, headers, peer_is_client=False)
            if verdict is Verdict.COUNTED:
                raise
            return Identified("", verdict)
        # An address that the proxy names is the client's. Otherwise, it is where the request comes from.
        if address is None:
            return Identified(client, identity.verdict(peer, headers, peer_is_client=False))
        return Identified(client, identity.verdict_of((address,)))

    def _by_chain(self, peer: str | None, headers: Headers) -> str:
        try:
            client = self._identity.client(peer, headers)
        except SeveralValues as exc:
            raise _no_client(exc.field, f"{exc.field} {exc.problem}", exc.remedy) from None
        if client is None:
            raise _no_client(
                None,
                "no header field of STOPLOG_IDENTIFY is there",
                "send one of them, or add address to the chain",
            )
        return client

    def _explicit(self, headers: Headers) -> tuple[str, Address | None]:
        values = [value for key, value in headers if key == self._field]
        if len(values) != 1:
            fault = "occurs more than once" if values else "is missing"
            remedy = "configure the proxy to set it to the client id"
            raise _no_client(self._header, f"{self._header} {fault}", remedy)
        value = values[0]
        client = self._explicit_id(value) if len(value) <= MAX_ID_BYTES else self._read(value)
        if client is None:
            raise _no_client(self._header, f"{self._header}: empty", "give an id of 1 to 256 bytes")
        return client

    def _read(self, value: bytes) -> tuple[str, Address | None] | None:
        """Return the id in the value of the header field, and the address that it is, if it is one."""
        may_be_address = b"." in value or b":" in value
        if may_be_address and (address := parse_address(value.decode("latin-1"))) is not None:
            return address_id(address, self._identity.ipv6_prefix), address
        return (header_id(value), None) if value.strip(b" \t") else None


def _no_client(field: str | None, detail: str, remedy: str) -> ProblemError:
    return ProblemError(NO_CLIENT, detail, field, remedy)
