"""How RocksDB files are opened: all of a worker's under one bound of memory.

RocksDB's defaults allow gigabytes, and there is a database for each table and partition.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBufferManager

_WRITE_BUFFER: Final = 16 << 20
"""Bytes that a database holds unsorted, if all of them together may have as much."""
_BLOCK: Final = 2 << 10
"""Bytes read and unpacked for one client of its many: half of RocksDB's default, at twice the index."""
_BLOOM_BITS: Final = 10
"""A client never seen costs 0.3 µs by its bloom filter, and some µs without."""
_UNSORTED_FILES: Final = 2
"""Files that a client is looked for in one after the other before they are merged into one that is sorted."""
_OPEN_FILES: Final = 64


class Rocks:
    """Opens databases that share *memory* bytes: blocks read, bloom filters, indexes and write buffers.

    Write buffers have at most half of it.
    """

    def __init__(self, memory: int) -> None:
        self._cache = Cache(memory)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            memory // 2, False, self._cache
        )

    def open(self, path: Path) -> Rdict:
        """Open the database at *path*; it is made if there is none."""
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
        # What is not in a write buffer is not searched for in it.
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(0.1)
        options.set_level_zero_file_num_compaction_trigger(_UNSORTED_FILES)
        options.set_max_open_files(_OPEN_FILES)
        options.set_keep_log_file_num(2)
        # Without being named, the default family of a database that is there already is opened with what is
        # on disk of its options: a cache of its own of 8 MiB, and no bloom filter.
        return Rdict(str(path), options, column_families={"default": options})
