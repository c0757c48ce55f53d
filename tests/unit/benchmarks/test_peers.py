from __future__ import annotations

from tests.benchmarks.peers import environment
from tests.benchmarks.stages.apps import _PEERS


def test_labels_of_peers_have_the_versions_that_are_pinned() -> None:
    pinned = environment._LOCK.read_text().split()
    for module, label in _PEERS.items():
        _, name, version, *_ = label.split()
        assert name.replace("-", "_") == module
        assert f"{name}=={version}" in pinned
