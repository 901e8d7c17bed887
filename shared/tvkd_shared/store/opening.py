"""Opening a store to write, which makes it when it is missing."""

import logging
import os
import uuid
from pathlib import Path

from tvkd_shared.errors import InvalidRequest, NoStore, StoreUnavailable
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.files import Files, files_at
from tvkd_shared.store.folder import Folder, network_file_system
from tvkd_shared.store.format import STORE_FILE, Format, read_format
from tvkd_shared.store.segment import format_of_segments
from tvkd_shared.store.store import SEAL_BYTES, Store

_logger = logging.getLogger(__name__)


def open_store(
    place: str | Path, *, seal_bytes: int = SEAL_BYTES, mantissa_bits: int | None = None, create: bool = True
) -> Store:
    """The store in a folder or at a URL, which is made when it is missing, unless `create` is false.

    Raises NoStore when it is missing and is not to be made, InvalidRequest when it has another precision than
    `mantissa_bits`, StoreUnavailable when it has another version, its disk or service fails, the folder is on a network
    file system, or the service has no conditional writes.
    """
    files = files_at(place)
    if isinstance(files, Folder) and (kind := network_file_system(files.root)):
        raise StoreUnavailable(
            f"the store {place} cannot be written on a network file system ({kind}), where SQLite's locks are unsafe: "
            "use a local disk, or object storage (s3://…)"
        )
    if files.remote:
        _check_conditional_writes(files)
    if create:
        _make(files, mantissa_bits)
    if isinstance(files, Folder) and files.root.exists() and not os.access(files.root, os.W_OK, effective_ids=True):
        raise StoreUnavailable(f"the store {place} cannot be written: its folder is read-only for this user")
    return Store(files, seal_bytes)


def _make(files: Files, mantissa_bits: int | None) -> None:
    """Make a store where there is none, or write a damaged `store.json` anew. Raises as `open_store` does."""
    wanted = Format() if mantissa_bits is None else Format(mantissa_bits)
    try:
        present = read_format(files)
    except NoStore:
        if not files.create(STORE_FILE, wanted.to_bytes()):
            _make(files, mantissa_bits)
        return
    except Damaged as damage:
        present = format_of_segments(files) or wanted
        _logger.warning("%s; it is written anew", damage)
        files.write({STORE_FILE: present.to_bytes()})
    if mantissa_bits is not None and present != wanted:
        raise InvalidRequest(
            f"the store {files} keeps {present.mantissa_bits} mantissa bits, not {mantissa_bits}; "
            "leave the flag out, or use another store"
        )


def _check_conditional_writes(files: Files) -> None:
    """With a service that ignores the condition two writers could publish one commit, and one of them would be lost."""
    probe = f"probe/{uuid.uuid4().hex}"
    if not files.create(probe, b"first") or files.create(probe, b"second"):
        raise StoreUnavailable(
            f"{files} ignores conditional writes (If-None-Match), which commits need; use a service that has them"
        )
    files.remove([probe])
