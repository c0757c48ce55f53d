"""The worker's settings: read once from ``STOPLOG_*`` variables, then frozen."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stoplog.lanes import app_id, lane_of, worker_name
from stoplog.policy import Policy, parse_policy
from stoplog.topics import DEFAULT_FILE


class Settings(BaseSettings):
    """One value, read at start. Every field is ``STOPLOG_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="STOPLOG_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    home: Path = Field(Path(".stoplog"), description="Folder; tables are kept under it, by instance id.")
    kafka: str | None = Field(
        None,
        description="Bootstrap servers (host:port, …); unset: the embedded broker on broker_port.",
    )
    broker_port: int = Field(9092, ge=1, le=65535, description="Port of the embedded broker.")
    topics: Path = Field(DEFAULT_FILE, description="The topics file.")
    lane: str = Field("", description="The lane that this worker judges in; unset, or a: the default one.")
    instance_id: str = Field(
        default_factory=lambda data: worker_name(data.get("lane", ""), 1),
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of this worker, its own and lasting: its tables are found again by it.",
    )
    default_limits: str = Field(
        "100/minute",
        description="Limits where nothing is configured, comma separated; read at the first start only.",
    )
    flush_interval_ms: int = Field(
        5_000,
        ge=10,
        le=60_000,
        description="Milliseconds between flushes, under load less: what a crash has to replay.",
    )
    session_timeout_ms: int = Field(
        6_000,
        ge=1_000,
        le=300_000,
        description="Milliseconds without a heartbeat until a worker's partitions move.",
    )
    cached_clients: int = Field(
        150_000,
        ge=1_000,
        description="Quiet clients' states kept in memory, of 800 bytes, over all partitions; of busy ones "
        "as many as take no more, which are a fifth.",
    )
    store_memory_mb: int = Field(
        192, ge=16, description="MiB that RocksDB may use, over all partitions: read and write buffers."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the worker's /metrics.")
    metrics_port: int = Field(9101, ge=0, le=65535, description="Port of the worker's /metrics; 0: any free.")
    tracing: bool = Field(
        False,
        description="Send spans by OpenTelemetry (OTEL_* variables say where to); needs stoplog[tracing].",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )

    @field_validator("lane")
    @classmethod
    def _lane_can_name_topics(cls, value: str) -> str:
        return lane_of(value)

    @field_validator("default_limits")
    @classmethod
    def _limits_can_be_read(cls, value: str) -> str:
        _policy(value)
        return value

    @property
    def bootstrap(self) -> str:
        """Where Kafka is."""
        return self.kafka or f"127.0.0.1:{self.broker_port}"

    @property
    def app_id(self) -> str:
        """Names the lane's group and, with the tables' names, its changelogs."""
        return app_id(self.lane)

    @property
    def tables(self) -> Path:
        """Folder of this worker's tables."""
        folder = self.home / f"lane-{self.lane}" if self.lane else self.home
        return folder / self.instance_id

    @property
    def default_policy(self) -> Policy:
        """What applies where nothing is configured."""
        return _policy(self.default_limits)

    @property
    def send_timeout_ms(self) -> int:
        """Milliseconds after which a record not yet sent is given up: a third of the session timeout.

        What a worker sends must not arrive after its partitions have moved, so this, too, is taken off
        the time for which a heartbeat is worth something (:class:`stoplog_worker.lease.Lease`).
        """
        return self.session_timeout_ms // 3

    @property
    def node_id(self) -> str:
        """What others know this worker by."""
        return f"{self.instance_id}@{socket.gethostname()}"


def _policy(text: str) -> Policy:
    parts = [part.strip() for part in text.split(",")]
    return parse_policy(parts[0] if parts == ["unlimited"] else parts, "default_limits")
