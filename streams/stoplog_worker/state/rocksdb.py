"""Open RocksDB databases, all of a worker's under one memory bound.

A worker has two databases for each partition. RocksDB's defaults would allow them gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBufferManager

_WRITE_BUFFER: Final = 16 << 20
"""Bytes of unsorted entries that one database may hold, within the memory of all write buffers."""
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
    """

    def __init__(self, memory: int) -> None:
        self._cache = Cache(memory)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            memory // 2, False, self._cache
        )

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
        options.set_write_buffer_size(_WRITE_BUFFER)
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
