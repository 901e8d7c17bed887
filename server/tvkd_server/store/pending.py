"""The blocks in the log that wait to be sealed."""

import sys
from collections.abc import Iterator
from typing import NamedTuple

from tvkd_shared.store.log import Connections


class PendingRow(NamedTuple):
    """One block of the log, in the order of the columns of `pending`."""

    id: int
    key: bytes
    temperature: float
    crc: int
    payload: bytes


def batches(connections: Connections, limit: int) -> Iterator[list[PendingRow]]:
    """The blocks that are pending now, oldest first; a batch has one temperature and little more than `limit` bytes."""
    with connections.one() as connection:
        (last,) = connection.execute("SELECT max(id) FROM pending").fetchone()
        temperatures = connection.execute("SELECT DISTINCT temperature FROM pending").fetchall()
    for (temperature,) in temperatures:
        after = 0
        while batch := _batch(connections, temperature, after, last, limit):
            yield batch
            after = batch[-1].id


def _batch(connections: Connections, temperature: float, after: int, last: int, limit: int) -> list[PendingRow]:
    batch: list[PendingRow] = []
    size = 0
    with connections.one() as connection:
        cursor = connection.execute(
            "SELECT id, key, temperature, crc, payload FROM pending"
            " WHERE temperature = ? AND id > ? AND id <= ? ORDER BY id",
            (temperature, after, last),
        )
        for row in map(PendingRow._make, cursor):
            batch.append(row)
            # Not len(): a flipped bit in the log can change the type.
            size += sys.getsizeof(row.payload)
            if size >= limit:
                break
        cursor.close()
    return batch
