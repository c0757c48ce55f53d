"""Open RocksDB databases, all of a worker's under one memory bound.

A worker has two databases for each partition. RocksDB's defaults would allow them gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBufferManager

_MAX_WRITE_BUFFER: Final = 16 << 20
_MIN_WRITE_BUFFER: Final = 256 << 10
"""Bounds of the bytes of unsorted entries that one database may hold.

Between them, each database has an equal share of the memory of all write buffers. A write buffer allocates
its bloom filter at once, a tenth of its size. With 16 MiB for each of 128 databases, the filters alone took
more than the memory of all write buffers, so RocksDB wrote small files all the time.
"""
_BLOCK: Final = 2 << 10
"""Bytes read and decompressed to find one client: half of RocksDB's default, with an index twice the size."""
_BLOOM_BITS: Final = 10
"""Bits of the bloom filter for each key. The filter makes the lookup of a new client ten times cheaper."""
_UNSORTED_FILES: Final = 2
"""Level-0 files before they are merged. A lookup may have to search each of them."""
_OPEN_FILES: Final = 64
_LOG_FILE: Final = 1 << 20
"""Bytes of RocksDB's own log (``LOG``) before it begins another. Two of them are kept."""


class RocksDbFactory:
    """Opens databases that share memory for blocks, bloom filters, indexes and write buffers.

    Args:
        memory: Bytes for all databases. Write buffers use at most half of them.
        databases: Number of databases, at most.
    """

    def __init__(self, memory: int, databases: int) -> None:
        self._cache = Cache(memory)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            memory // 2, False, self._cache
        )
        share = memory // 2 // databases
        self._write_buffer = min(max(share, _MIN_WRITE_BUFFER), _MAX_WRITE_BUFFER)

    def open(self, path: Path) -> Rdict:
        """Open the database at *path*, and create it if it does not exist."""
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        blocks.set_block_size(_BLOCK)
        blocks.set_bloom_filter(_BLOOM_BITS, block_based=False)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(self._write_buffer)
        options.set_max_write_buffer_number(2)
        # A bloom filter of the write buffer saves the search in it for keys that it does not hold.
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(0.1)
        options.set_level_zero_file_num_compaction_trigger(_UNSORTED_FILES)
        options.set_max_open_files(_OPEN_FILES)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(_LOG_FILE)
        # The default column family must be named. Otherwise an existing database is opened with its stored
        # options: its own cache of 8 MiB, and no bloom filter.
        return Rdict(str(path), options, column_families={"default": options})
