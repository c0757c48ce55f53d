"""The credentials of Faust's Kafka client, from the settings that all other Kafka clients use."""

from __future__ import annotations

import asyncio

from aiokafka.abc import AbstractTokenProvider
from faust import auth

from stoplog.errors import Unavailable
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.oauth_tokens import TokenProvider


class AiokafkaTokens(AbstractTokenProvider):  # type: ignore[misc]
    """Hands the tokens that librdkafka's clients use to aiokafka.

    Args:
        tokens: Provides them.
    """

    def __init__(self, tokens: TokenProvider) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        """Return a valid token.

        Raises:
            ConnectionError: There is none. aiokafka logs it and tries again.
        """
        try:
            return (await asyncio.to_thread(self._tokens.get)).value
        except Unavailable as exc:
            raise ConnectionError(str(exc)) from exc


def faust_credentials(connection: KafkaConnection) -> auth.Credentials | None:
    """Return Faust's form of *connection*'s credentials; ``None`` for a connection without security."""
    security, context = connection.security, connection.ssl_context
    if connection.tokens is not None:
        return auth.OAuthCredentials(oauth_cb=AiokafkaTokens(connection.tokens), ssl_context=context)
    if security.mechanism is not None:
        return auth.SASLCredentials(
            username=security.username,
            password=security.password,
            mechanism=security.mechanism,
            ssl_context=context,
        )
    return None if context is None else auth.SSLCredentials(context)
