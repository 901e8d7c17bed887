"""The store's format and its read-only side.

files        where files rest: folder (a local disk), bucket (object storage)
document     a JSON file with its checksum       format       store.json
block        the rows under one key and one temperature
log          durable records not yet in a segment
segment      an immutable Zarr group of blocks; shard: one of its arrays
turn         a lock for a request that others wait for
entry        what a commit says of a segment
catalog      the commits: which segments are live
index        key → segment and row
certificate  how far a sample of the values was off
reader       StoreReader
"""

from tvkd_shared.store.reader import StoreCounts, StoreReader

__all__ = ["StoreCounts", "StoreReader"]
