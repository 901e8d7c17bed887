"""A store that takes records."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from tvkd_server.store.publisher import Publisher
from tvkd_shared.errors import InvalidRequest, NoStore
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Record
from tvkd_shared.store.block import Damaged, blocks, rounded
from tvkd_shared.store.files import Files, files_at
from tvkd_shared.store.format import STORE_FILE, Format, read_format
from tvkd_shared.store.log import Name, Pending
from tvkd_shared.store.reader import check_temperatures
from tvkd_shared.store.segment import format_of_segments

_logger = logging.getLogger(__name__)


class Store(Publisher, ABC):
    """A store that takes records; made when it is missing."""

    def __init__(self, place: str | Path, mantissa_bits: int | None) -> None:
        make_store(files_at(place), mantissa_bits)
        super().__init__(place)

    @abstractmethod
    def put(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> None:
        """Keeps the blocks of a teacher that are not here yet; what is here stays. Returns when they are durable.

        Raises ValueError when a key has not 16 bytes or a temperature is not a positive finite number, StoreUnavailable
        when disk or service fails: then it is not known which of them are kept.
        """

    def rows(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> dict[Name, Pending]:
        """The records' blocks, as the store keeps their numbers. Raises ValueError as `put` does."""
        check_temperatures({temperature for _, record in records for temperature in record.values})
        if wrong := [key for key, _ in records if len(key) != KEY_BYTES]:
            raise ValueError(f"key {wrong[0].hex()} has {len(wrong[0])} bytes, not {KEY_BYTES}")
        bits = self.format.mantissa_bits
        return {
            Name(key, temperature): Pending(teacher, rounded(block, bits))
            for key, record in reversed(records)  # of two records of a key, the first
            for temperature, block in blocks(record)
        }

    def seal(self) -> None:
        """Makes segments of what is durable elsewhere."""


def make_store(files: Files, mantissa_bits: int | None) -> None:
    """Make a store where there is none, or mend its `store.json`.

    Raises InvalidRequest when a store is there with another precision than was asked for, StoreUnavailable when it has
    another version.
    """
    wanted = Format() if mantissa_bits is None else Format(mantissa_bits)
    try:
        found = read_format(files)
    except NoStore:
        if not files.create(STORE_FILE, wanted.to_bytes()):
            make_store(files, mantissa_bits)
        return
    except Damaged as damage:
        _logger.warning("%s; it is written anew", damage)
        found = format_of_segments(files) or wanted
        files.write({STORE_FILE: found.to_bytes()})
    if mantissa_bits is not None and found != wanted:
        raise InvalidRequest(
            f"the store {files} keeps {found.mantissa_bits} mantissa bits, not {mantissa_bits}; "
            "leave the flag out, or use another store"
        )
