"""The writers of a store.

store      Store: takes records
local      LocalStore: in a folder, one process; log and lock
shared     SharedStore: in object storage, any number of processes
publisher  publishing segments, each made by segment
compact    many segments into few                 gc      removing what is no longer live
verify     checking every byte                    copying from one store into another
"""

from pathlib import Path

from tvkd_server.store.local import LocalStore
from tvkd_server.store.store import Store

__all__ = ["LocalStore", "Store", "open_store"]


def open_store(place: str | Path, *, seal_bytes: int = 8 << 20, mantissa_bits: int | None = None) -> Store:
    """The store at a folder or a URL, made when it is missing. Raises as `LocalStore` and `SharedStore` do."""
    if "://" in str(place):
        from tvkd_server.store.shared import SharedStore  # noqa: PLC0415 - object storage only where it is used

        return SharedStore(str(place), mantissa_bits=mantissa_bits)
    return LocalStore(place, seal_bytes=seal_bytes, mantissa_bits=mantissa_bits)
