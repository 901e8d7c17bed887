"""The writer of the embedded store: a durable SQLite log, sealed into immutable Zarr segments.

store     Store: put, get, seal
log       what is written to log.sqlite, a transaction each
segment   sealed blocks, written, verified and published
recovery  what an open finds after a crash, or without its index
lock      one writer a store
"""

from tvkd_server.store.store import Store

__all__ = ["Store"]
