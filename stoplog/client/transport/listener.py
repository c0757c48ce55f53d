"""The events that the transport reports."""

from __future__ import annotations

from typing import Protocol

from stoplog.client.limit_update_follower import UpdateListener
from stoplog.client.transport.broker_view import BrokerView
from stoplog.wire.heartbeats import StampedHeartbeat
from stoplog.wire.replies import LookupReply, Reply, UpdateReply


class TransportListener(UpdateListener, Protocol):
    """Receives the transport's events, always in the event loop."""

    def on_position(self) -> None:
        """Handle that the consumer has its position: from now on it misses no reply."""

    def on_replies(self, replies: list[Reply]) -> None:
        """Handle replies to this gateway's batches."""

    def on_update_replies(self, replies: list[UpdateReply]) -> None:
        """Handle replies to this gateway's limit updates."""

    def on_lookup_replies(self, replies: list[LookupReply]) -> None:
        """Handle replies to this gateway's lookups."""

    def on_heartbeats(self, heartbeats: list[StampedHeartbeat]) -> None:
        """Handle heartbeats of any node."""

    def on_undelivered(self, failures: list[tuple[int, int]]) -> None:
        """Handle batches that could not be published: the number of each, and how many checks it has."""

    def on_denials_lost(self, checks: int) -> None:
        """Handle that the sums of *checks* denied checks could not be published."""

    def on_broker_down(self, why: str) -> None:
        """Handle that no broker can be reached."""

    def on_broker_view(self, view: BrokerView) -> None:
        """Handle the broker's metadata."""

    def on_undecodable(self, records: int) -> None:
        """Handle that records of ``replies`` and ``nodes`` were skipped because they cannot be decoded."""

    def on_failure(self, why: str) -> None:
        """Handle the failure of a thread of the transport: no more events follow."""
