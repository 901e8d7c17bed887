"""Key → (segment, row) for every block of every live segment: 16 bytes a block, in sorted arrays, mapped from a file.

A block's entry is the first 8 bytes of its key, as a number, and its place: the segment's ordinal in the upper 32 bits,
the row in the lower. Keys are digests, so equal beginnings are rare, and the segment's own `keys` decide. Entries are
kept in runs, each of them sorted. A run that has grown to half of the one before is merged with it, so there are few.

The index is made from the segments' keys. A file keeps it only so that opening a store need not read those; a file that
is missing, damaged or old is made anew.
"""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tvkd_shared.key import KEY_BYTES

UInt64 = npt.NDArray[np.uint64]
_ROW_BITS, _ROWS = np.uint64(32), np.uint64(0xFFFFFFFF)
_HEAD_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """prefixes, sorted, and the place of each, both uint64 [N]."""

    prefixes: UInt64
    places: UInt64

    def __len__(self) -> int:
        return len(self.prefixes)

    def renumbered(self, live: npt.NDArray[np.bool_], ordinals: UInt64) -> "Run":
        """The entries of live segments, under their new ordinals; both arrays are by old ordinal."""
        old = (self.places >> _ROW_BITS).astype(np.int64)
        kept = live[old]
        rows = self.places[kept] & _ROWS
        return Run(self.prefixes[kept], (ordinals[old[kept]] << _ROW_BITS) | rows)


class Index:
    """One thread at a time changes it; any number may look keys up meanwhile."""

    def __init__(self) -> None:
        # Names by ordinal, and the runs that refer to them: replaced together, or added to.
        self._state: tuple[list[str], tuple[Run, ...]] = ([], ())
        self.names: set[str] = set()
        """Segments whose keys are in the index."""

    def __len__(self) -> int:
        return sum(map(len, self._state[1]))

    def copy(self) -> "Index":
        """The index as it is now, for look-ups while this one changes. It costs nothing: arrays are shared."""
        other = Index()
        other._state, other.names = self._state, set(self.names)
        return other

    def add(self, name: str, keys_N16: npt.NDArray[np.uint8]) -> None:
        """Add the keys of a segment, in the order of its records."""
        names, runs = self._state[0], list(self._state[1])
        prefixes = _prefixes(keys_N16)
        order = np.argsort(prefixes, kind="stable")
        runs.append(Run(prefixes[order], (np.uint64(len(names)) << _ROW_BITS) | order.astype(np.uint64)))
        while len(runs) > 1 and 2 * len(runs[-1]) >= len(runs[-2]):
            runs[-2:] = [_merged(runs[-2:])]
        names.append(name)  # runs that are in use do not refer to it
        self.names.add(name)
        self._state = names, tuple(runs)

    def drop(self, removed: Iterable[str]) -> None:
        """Forget segments that are no longer live."""
        live_names = self.names - set(removed)
        if live_names == self.names:
            return
        names, runs = self._state
        live = np.array([name in live_names for name in names])
        ordinals = (live.cumsum() - 1).astype(np.uint64)
        kept = [name for name in names if name in live_names]
        self._state = kept, tuple(run.renumbered(live, ordinals) for run in runs)
        self.names = live_names

    def find(self, keys: Sequence[bytes]) -> dict[str, list[tuple[int, int]]]:
        """By segment, (index of the key, row) for every block that may have one of the keys."""
        hits: dict[str, list[tuple[int, int]]] = {}
        if not keys:
            return hits
        prefixes = _prefixes(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
        names, runs = self._state
        for run in runs:
            starts = np.searchsorted(run.prefixes, prefixes, "left")
            stops = np.searchsorted(run.prefixes, prefixes, "right")
            for which in np.flatnonzero(stops > starts).tolist():
                for place in run.places[starts[which] : stops[which]].tolist():
                    hits.setdefault(names[place >> 32], []).append((which, place & 0xFFFFFFFF))
        return hits

    def save(self, path: Path) -> None:
        """Write the index as one run, in place of the file that was there."""
        names, runs = self._state
        run = _merged(list(runs)) if len(runs) != 1 else runs[0]
        head = json.dumps({"names": names, "entries": len(run)}).encode()
        head += b" " * (-len(head) % 8)
        crc = _checksum(head, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with unfinished.open("xb") as file:
                file.write(len(head).to_bytes(4, "little") + crc.to_bytes(4, "little") + head)
                run.prefixes.tofile(file)
                run.places.tofile(file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._state = names, (run,)

    @classmethod
    def load(cls, path: Path) -> "Index | None":
        """The index in a file, mapped; None when the file is missing or fails its check."""
        index = cls()
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            content = np.asarray(np.memmap(path, np.uint8, "r"))
            length, crc = (int.from_bytes(content[at : at + 4].tobytes(), "little") for at in (0, 4))
            head = content[_HEAD_BYTES : _HEAD_BYTES + length].tobytes()
            rows = content[_HEAD_BYTES + length :].view(np.uint64)
            fields = json.loads(head)
            run = Run(rows[: fields["entries"]], rows[fields["entries"] :])
            if len(run.prefixes) == len(run.places) and _checksum(head, run) == crc:
                index._state = list(fields["names"]), (run,)
                index.names = set(fields["names"])
                return index
        return None


def _checksum(head: bytes, run: Run) -> int:
    return zlib.crc32(run.places.data, zlib.crc32(run.prefixes.data, zlib.crc32(head)))


def _prefixes(keys_N16: npt.NDArray[np.uint8]) -> UInt64:
    return np.ascontiguousarray(keys_N16[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def _merged(runs: list[Run]) -> Run:
    prefixes = np.concatenate([np.zeros(0, np.uint64), *(run.prefixes for run in runs)])
    places = np.concatenate([np.zeros(0, np.uint64), *(run.places for run in runs)])
    order = np.argsort(prefixes, kind="stable")
    return Run(prefixes[order], places[order])
