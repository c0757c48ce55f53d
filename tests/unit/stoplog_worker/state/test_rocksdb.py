"""How RocksDB files are opened: the second time as the first."""

from __future__ import annotations

from pathlib import Path

from stoplog_worker.state.rocksdb import Rocks

MEMORY = 16 << 20


def test_a_database_that_was_there_has_the_shared_memory_and_filters_too(tmp_path: Path) -> None:
    for entries in (1, 2):
        database = Rocks(MEMORY).open(tmp_path / "counters")
        database[b"client-%d" % entries] = b"state"
        database.flush()
        assert database.property_int_value("rocksdb.block-cache-capacity") == MEMORY
        files = database.property_value("rocksdb.aggregated-table-properties") or ""
        assert f"# entries for filter={entries};" in files
        database.close()
