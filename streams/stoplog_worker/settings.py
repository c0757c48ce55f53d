"""The worker's settings, read once from ``STOPLOG_*`` variables, then frozen."""

from __future__ import annotations

import socket
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from stoplog.errors import InvalidInput
from stoplog.kafka.settings import KafkaSettings
from stoplog.lanes import app_id, lane_of, worker_name
from stoplog.policy import Policy, parse_policy
from stoplog.secret_file import read_secret
from stoplog.topics import DEFAULT_FILE
from stoplog_worker.algorithm.relay_keys import RelayKeys, parse_relay_keys


class Settings(KafkaSettings):
    """All settings of a worker. The variable of each field is ``STOPLOG_<NAME>``."""

    home: Path = Field(
        Path(".stoplog"),
        description="Directory of the embedded broker's data and of the workers' tables.",
    )
    topics: Path = Field(DEFAULT_FILE, description="Path of the file that defines the topics (topics.yaml).")
    lane: str = Field("", description="Lane of this worker. Unset or `a`: the default lane.")
    instance_id: str = Field(
        default_factory=lambda data: worker_name(data.get("lane", ""), 1),
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Permanent and unique name of this worker. Its tables are stored under this name.",
    )
    default_limits: str = Field(
        "100/minute",
        description="Limits of clients without limits of their own, comma separated, or `unlimited`. A "
        "partition reads them at its first start only.",
    )
    flush_interval_ms: int = Field(
        5_000,
        ge=10,
        le=60_000,
        description="Milliseconds between two checkpoints of a partition, at most one second under load. "
        "After a crash, the checks since the last checkpoint are replayed.",
    )
    session_timeout_ms: int = Field(
        6_000,
        ge=1_000,
        le=300_000,
        description="Milliseconds without a heartbeat after which a worker's partitions move to others.",
    )
    cached_clients: int = Field(
        150_000,
        ge=1_000,
        description="Cache size over all partitions, in idle clients of about 800 bytes (the default is "
        "about 120 MB). A constantly busy client counts as up to five.",
    )
    store_memory_mb: int = Field(
        192, ge=16, description="MiB of memory for RocksDB's read and write buffers, over all partitions."
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that the worker's /metrics endpoint listens on."
    )
    metrics_port: int = Field(
        9101, ge=0, le=65535, description="TCP port of the worker's /metrics endpoint. 0: any free port."
    )
    relay_keys: SecretStr | None = Field(
        None,
        description="Keys that sign relayed limit updates: `<id>:<key in hex>`, comma separated. The first "
        "one signs. All workers of all lanes need the same keys, and nothing else has them.",
    )
    relay_keys_file: Path | None = Field(
        None, description="Path of a file with the relay keys, instead of STOPLOG_RELAY_KEYS."
    )
    tracing: bool = Field(
        False,
        description="Send OpenTelemetry spans. The OTEL_* variables configure the exporter. Needs the extra "
        "`tracing`.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged: DEBUG, INFO, WARNING or ERROR."
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

    @model_validator(mode="after")
    def _relay_keys_can_be_read(self) -> Self:
        _ = self.keys
        return self

    @cached_property
    def keys(self) -> RelayKeys:
        """The relay keys.

        Raises:
            InvalidInput: An entry is malformed, or both settings are set.
            SettingsError: The file cannot be read or is empty.
        """
        if self.relay_keys_file is None:
            return parse_relay_keys(self.relay_keys.get_secret_value() if self.relay_keys else "")
        if self.relay_keys:
            raise InvalidInput("relay_keys", "STOPLOG_RELAY_KEYS_FILE is set as well", "set one of them")
        return parse_relay_keys(read_secret(self.relay_keys_file, "STOPLOG_RELAY_KEYS_FILE"))

    @property
    def app_id(self) -> str:
        """The id of the lane's consumer group, and the prefix of its changelogs' names."""
        return app_id(self.lane)

    @property
    def tables(self) -> Path:
        """The directory of this worker's tables."""
        folder = self.home / f"lane-{self.lane}" if self.lane else self.home
        return folder / self.instance_id

    @property
    def default_policy(self) -> Policy:
        """The policy of clients without limits of their own."""
        return _policy(self.default_limits)

    @property
    def send_timeout_ms(self) -> int:
        """Milliseconds after which an unsent record is given up: a third of the session timeout.

        A worker's records must not arrive after its partitions have moved. The lease is therefore shorter
        by this time (:class:`stoplog_worker.lease.Lease`).
        """
        return self.session_timeout_ms // 3

    @property
    def node_id(self) -> str:
        """This worker's id in the status and in heartbeats."""
        return f"{self.instance_id}@{socket.gethostname()}"


def _policy(text: str) -> Policy:
    parts = [part.strip() for part in text.split(",")]
    return parse_policy(parts[0] if parts == ["unlimited"] else parts, "default_limits")
