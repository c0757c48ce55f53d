"""A RocksDB database is opened with the same options the second time."""

from __future__ import annotations

from pathlib import Path

from stoplog_worker.state.rocksdb import RocksDbFactory

MEMORY = 16 << 20


def test_open_existing_database_uses_shared_cache_and_bloom_filter(tmp_path: Path) -> None:
    for entries in (1, 2):
        database = RocksDbFactory(MEMORY, 2).open(tmp_path / "counters")
        database[b"client-%d" % entries] = b"state"
        database.flush()
        assert database.property_int_value("rocksdb.block-cache-capacity") == MEMORY
        files = database.property_value("rocksdb.aggregated-table-properties") or ""
        assert f"# entries for filter={entries};" in files
        database.close()


def test_many_databases_share_write_memory_without_writing_small_files(tmp_path: Path) -> None:
    factory = RocksDbFactory(2 * MEMORY, 32)
    databases = [factory.open(tmp_path / str(number)) for number in range(32)]
    for _ in range(3):
        for database in databases:
            database[b"client"] = b"state"
    used = sum(database.property_int_value("rocksdb.size-all-mem-tables") or 0 for database in databases)
    assert used < MEMORY
    files = [database.property_value("rocksdb.num-files-at-level0") for database in databases]
    assert files == ["0"] * 32
    for database in databases:
        database.close()
