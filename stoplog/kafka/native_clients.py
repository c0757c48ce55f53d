"""The clients of librdkafka that Stoplog creates. A forked process never destroys those of its parent.

The arguments are those of the base classes.
"""

from __future__ import annotations

from typing import Any

import confluent_kafka
import confluent_kafka.admin

from stoplog.forks import call_after_fork, leak


class _LeaksAfterFork:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        call_after_fork(self)

    def after_fork(self) -> None:
        """Keep the client: its threads are those of another process."""
        leak(self)


class Producer(_LeaksAfterFork, confluent_kafka.Producer):
    """A producer."""


class Consumer(_LeaksAfterFork, confluent_kafka.Consumer):
    """A consumer."""


class AdminClient(_LeaksAfterFork, confluent_kafka.admin.AdminClient):
    """An admin client."""
