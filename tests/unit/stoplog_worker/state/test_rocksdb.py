"""A RocksDB database is opened with the same options the second time."""

from __future__ import annotations

from pathlib import Path

from stoplog_worker.state.rocksdb import RocksDbFactory

MEMORY = 16 << 20


def test_open_existing_database_uses_shared_cache_and_bloom_filter(tmp_path: Path) -> None:
    for entries in (1, 2):
        database = RocksDbFactory(MEMORY).open(tmp_path / "counters")
        database[b"client-%d" % entries] = b"state"
        database.flush()
        assert database.property_int_value("rocksdb.block-cache-capacity") == MEMORY
        files = database.property_value("rocksdb.aggregated-table-properties") or ""
        assert f"# entries for filter={entries};" in files
        database.close()
