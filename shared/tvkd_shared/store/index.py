"""Key → (segment, row), for every block of every live segment: 16 bytes a block, in sorted arrays, mapped from a file.

A block's entry is the first 8 bytes of its key, as a number, and its place: the segment's ordinal in the upper 32 bits,
the row in the lower. Keys are digests, so equal beginnings are rare, and the segment's own `keys` decide. Entries lie
in runs, each sorted; a run that has grown to half of the one before is merged with it, so that there are few.

The index is made from the segments' keys, and a file keeps it only so that an opening need not read those: one that is
missing, damaged or old is made anew.
"""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
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
    """prefixes, sorted, and the place of each, both of shape (N,)."""

    prefixes: UInt64
    places: UInt64

    def __len__(self) -> int:
        return len(self.prefixes)

    def renumbered(self, live: npt.NDArray[np.bool_], ordinals: UInt64) -> "Run":
        """The entries of live segments, under their new ordinals; both are given by the old ones."""
        old = (self.places >> _ROW_BITS).astype(np.int64)
        kept = live[old]
        rows = self.places[kept] & _ROWS
        return Run(self.prefixes[kept], (ordinals[old[kept]] << _ROW_BITS) | rows)


class Index:
    """One thread at a time changes it; any number find in it meanwhile."""

    def __init__(self) -> None:
        # Names by ordinal, and the runs that speak of them: replaced together, or added to.
        self._state: tuple[list[str], tuple[Run, ...]] = ([], ())
        self.names: set[str] = set()
        """Segments whose keys are here."""

    def __len__(self) -> int:
        return sum(map(len, self._state[1]))

    def copy(self) -> "Index":
        """The index as it is now, to find in while this one goes on. Costs nothing: arrays are shared."""
        other = Index()
        other._state, other.names = self._state, set(self.names)
        return other

    def add(self, name: str, keys_N16: npt.NDArray[np.uint8]) -> None:
        """The keys of a segment, in the order of its records."""
        names, runs = self._state[0], list(self._state[1])
        prefixes = _prefixes(keys_N16)
        order = np.argsort(prefixes, kind="stable")
        runs.append(Run(prefixes[order], (np.uint64(len(names)) << _ROW_BITS) | order.astype(np.uint64)))
        while len(runs) > 1 and 2 * len(runs[-1]) >= len(runs[-2]):
            runs[-2:] = [_merged(runs[-2:])]
        names.append(name)  # runs that are in use know nothing of it
        self.names.add(name)
        self._state = names, tuple(runs)

    def drop(self, gone: Iterable[str]) -> None:
        """Forget segments that are no longer live."""
        left = self.names - set(gone)
        if left == self.names:
            return
        names, runs = self._state
        kept = [name for name in names if name in left]
        ordinals = np.array([name in left for name in names]).cumsum() - 1
        live = np.array([name in left for name in names])
        self._state = kept, tuple(run.renumbered(live, ordinals.astype(np.uint64)) for run in runs)
        self.names = left

    def find(self, keys: Sequence[bytes]) -> list[list[tuple[str, int]]]:
        """Segment and row of every block that may have each key: none, one, or one for each temperature and copy."""
        found: list[list[tuple[str, int]]] = [[] for _ in keys]
        if not keys:
            return found
        prefixes = _prefixes(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
        names, runs = self._state
        for run in runs:
            starts = np.searchsorted(run.prefixes, prefixes, "left")
            stops = np.searchsorted(run.prefixes, prefixes, "right")
            for which in np.flatnonzero(stops > starts).tolist():
                for place in run.places[starts[which] : stops[which]].tolist():
                    found[which].append((names[place >> 32], place & 0xFFFFFFFF))
        return found

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
        """The index of a file, mapped; None when it is missing or fails its check."""
        index = cls()
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            content = np.memmap(path, np.uint8, "r")
            length, crc = (int.from_bytes(content[at : at + 4].tobytes(), "little") for at in (0, 4))
            head = content[_HEAD_BYTES : _HEAD_BYTES + length].tobytes()
            rows = content[_HEAD_BYTES + length :].view(np.uint64)
            said = json.loads(head)
            run = Run(rows[: said["entries"]], rows[said["entries"] :])
            if len(run.prefixes) == len(run.places) and _checksum(head, run) == crc:
                index._state = list(said["names"]), (run,)
                index.names = set(said["names"])
                return index
        return None


def _checksum(head: bytes, run: Run) -> int:
    return zlib.crc32(run.places.data, zlib.crc32(run.prefixes.data, zlib.crc32(head)))


def _prefixes(keys_N16: npt.NDArray[np.uint8]) -> UInt64:
    beginnings: Callable[[], UInt64] = np.ascontiguousarray(keys_N16[:, :8]).view(">u8").ravel
    return beginnings().astype(np.uint64)


def _merged(runs: list[Run]) -> Run:
    prefixes = np.concatenate([np.zeros(0, np.uint64), *(run.prefixes for run in runs)])
    places = np.concatenate([np.zeros(0, np.uint64), *(run.places for run in runs)])
    order = np.argsort(prefixes, kind="stable")
    return Run(prefixes[order], places[order])
