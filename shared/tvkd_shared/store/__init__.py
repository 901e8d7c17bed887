"""The store's format and its read-only side: a directory of Zarr v3 segments beside an SQLite log.

block     the rows stored under one key and one temperature
segment   an immutable Zarr group of sealed blocks
log       log.sqlite: records not yet sealed, the index of sealed ones, the teachers
reader    StoreReader
"""

from tvkd_shared.store.reader import StoreCounts, StoreReader

__all__ = ["StoreCounts", "StoreReader"]
