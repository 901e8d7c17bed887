"""The store: what a teacher computed, kept in a folder or in object storage, for any number of readers and writers.

reader       StoreReader                       store        Store: takes records, publishes segments
search       what a look-up has found so far   opening      open_store: makes a store when it is missing
block        float32 [S, K] under a key        recent       blocks of a folder that are durable in SQLite
segment      an immutable Zarr group of blocks shard        one of its arrays, read without zarr
catalog      commits: which segments are live  index        key → segment and row
files        where files are: folder, bucket   cache        decoded chunks
document     a JSON file with its checksum     format       store.json
compact      many segments into few            gc           removing what is no longer live
verify       checking every byte               copying      from one store into another
certificate  how far a sample of the numbers was off
write_ahead_log  checking SQLite's, for verify
"""

from tvkd_shared.store.opening import open_store
from tvkd_shared.store.reader import StoreCounts, StoreReader
from tvkd_shared.store.store import Store

__all__ = ["Store", "StoreCounts", "StoreReader", "open_store"]
