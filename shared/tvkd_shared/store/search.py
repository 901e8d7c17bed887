"""What a look-up has found so far: blocks that hold some of the columns of some keys."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tvkd_shared.record import Float32, Record

Columns = tuple[str, ...]


class Piece(NamedTuple):
    """Those columns of a key that count in one block. `segment` is "" for a recent block, which no segment has yet."""

    segment: str
    columns: Columns
    numbers: Float32


@dataclass(slots=True)
class Search:
    """What a look-up has found so far: by key, the columns that are missing, and the pieces of the others."""

    missing: dict[bytes, Columns]
    pieces: dict[bytes, list[Piece]]

    def take(self, key: bytes, segment: str, columns: Columns, block: Float32) -> None:
        """Take from a block those columns that are still missing."""
        wanted = self.missing.get(key, ())
        taken = wanted if wanted == columns else tuple(name for name in wanted if name in columns)
        if not taken:
            return
        if taken != columns:
            block = block[:, [columns.index(name) for name in taken]]
        self.pieces.setdefault(key, []).append(Piece(segment, taken, block))
        if rest := tuple(name for name in wanted if name not in columns):
            self.missing[key] = rest
        else:
            del self.missing[key]

    def length(self, key: bytes) -> int | None:
        """States of a key's blocks; None when none was found."""
        return next((len(piece.numbers) for piece in self.pieces.get(key, ())), None)

    def record(self, key: bytes, columns: Columns) -> Record | None:
        """A record of all the columns, or None when one is missing or blocks differ in length."""
        pieces = self.pieces.get(key, [])
        if len(pieces) == 1 and pieces[0].columns == columns:
            return Record.checked(columns, pieces[0].numbers.copy())
        named = {name: piece.numbers[:, index] for piece in pieces for index, name in enumerate(piece.columns)}
        if not named.keys() >= set(columns) or len({len(named[name]) for name in columns}) != 1:
            return None
        return Record.checked(columns, np.stack([named[name] for name in columns], 1))


class FilesGone(Exception):
    """A segment's files do not exist: it was compacted and collected since it was listed, or its files are lost."""

    def __init__(self, segment: str) -> None:
        super().__init__(segment)
        self.segment = segment
