"""A Celery application whose worker enters a limiter before it forks its pool: ``celery -A`` this module.

Run as a program, it sends checks to that worker and prints their results. ``CELERY_FOLDER`` is the place of
its files: the broker is a folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery

from stoplog import BlockingLimiter, Settings

SENT = 4

folder = Path(os.environ["CELERY_FOLDER"])
queue = folder / "queue"
queue.mkdir(exist_ok=True)

app: Any = Celery("checks", broker="filesystem://", backend=f"file://{folder}")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(queue),
        "data_folder_out": str(queue),
        "control_folder": str(folder),
    },
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)

limiter = BlockingLimiter(Settings())


def check(client: str) -> list[Any]:
    """Check, and return the answer and the name of the node."""
    answer = limiter.check(client)
    return [os.getpid(), limiter._limiter.node_id, answer.allowed, answer.degraded]


task = app.task(name="check")(check)

if __name__ == "__main__":
    sent = [app.send_task("check", ["celery"]) for _ in range(SENT)]
    print(json.dumps([one.get(timeout=90) for one in sent]))
elif os.environ.get("ENTERED"):
    limiter.__enter__()
    limiter.peek("entered")
