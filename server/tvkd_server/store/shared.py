"""A store in object storage: any number of processes write it, each under names of its own."""

import uuid
from collections.abc import Sequence

from tvkd_server.store.store import Store
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.record import Record
from tvkd_shared.store.files import Files, files_at


class SharedStore(Store):
    """What `put` returned from is published: a segment for each temperature, and one commit. Thread safe.

    Two writers that put one key both succeed, and the value in the earlier commit is everyone's. Raises
    StoreUnavailable when the service has no conditional writes.
    """

    def __init__(self, place: str, *, mantissa_bits: int | None = None) -> None:
        _check_conditional_writes(files_at(place))
        super().__init__(place, mantissa_bits)

    def put(self, teacher: str, records: Sequence[tuple[bytes, Record]]) -> None:
        rows = self.rows(teacher, records)
        self.heal()
        stored = self.blocks(list(rows))
        if new := {name: row for name, row in rows.items() if name not in stored}:
            self.publish(self.new_segments(new))
            self.save_index(grown=1.25)

    def close(self) -> None:
        self.save_index()
        super().close()


def _check_conditional_writes(files: Files) -> None:
    """A service that ignores the condition would let two writers publish one commit, and lose one of them."""
    probe = f"probe/{uuid.uuid4().hex}"
    if not files.create(probe, b"first") or files.create(probe, b"second"):
        raise StoreUnavailable(
            f"{files} ignores conditional writes (If-None-Match), which commits need; use a service that has them"
        )
    files.remove([probe])
