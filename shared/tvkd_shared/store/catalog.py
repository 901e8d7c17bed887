"""Which segments are live: commits in one order, each published by one conditional write.

Commit N is `commits/N.json`. Whoever creates it has read all before it, so that the order of commits is one for every
reader, and of two values of a key the one in the earlier commit counts, for good. A checkpoint holds what all commits
up to its number say, so that an opening reads few of them.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.files import Files
from tvkd_shared.store.format import FORMAT_NAME, FORMAT_VERSION, check_version

COMMITS, CHECKPOINTS, SEGMENTS = "commits", "checkpoints", "segments"
LAST_ORDER = 2**53
"""Order of a segment that is found with no commit that names it: after all others."""
_AT_ONCE = 16


class SegmentEntry(BaseModel):
    """What a commit says of one segment.

    name            its folder under `segments/`
    teacher         whose values it holds
    temperature     of its blocks; BASE for base blocks
    records, states its blocks and their rows
    bytes           of all its files
    metadata_crc32  CRC-32 over its `zarr.json` files; see `segment.metadata_crc32`
    order           number of the commit that published it, or the first of its parts; of two blocks of a key the one
                    with the lower order counts
    sequences, tokens   completions that were not in the store before, and their tokens; 0 for further temperatures
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    teacher: str
    temperature: float
    records: int
    states: int
    bytes: int
    metadata_crc32: int
    order: int = LAST_ORDER
    sequences: int = 0
    tokens: int = 0


class Commit(BaseModel):
    """Segments that come and go in one step. `removed_at` is in seconds since 1970."""

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT_NAME
    version: int = FORMAT_VERSION
    writer: str
    add: list[SegmentEntry] = []
    remove: dict[str, float] = {}

    def to_bytes(self) -> bytes:
        return document.to_bytes(self.model_dump(mode="json"))


def numbered(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


class Catalog:
    """The live segments as of the last commit that was read. One thread at a time refreshes it.

    `segments`  name → entry         `removed`  name → when it was removed, for those whose files may still be there
    `number`    of the last commit   `damaged`  commits and checkpoints that could not be read
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self.number = 0
        self.segments: dict[str, SegmentEntry] = {}
        self.removed: dict[str, float] = {}
        self.damaged: set[str] = set()
        self._load_checkpoint()
        self.refresh()

    def refresh(self) -> bool:
        """Read the commits since. Returns whether there were any."""
        before = self.number
        names = self._files.names(COMMITS, after=f"{self.number:012d}.json")
        if not names:
            return False
        numbers = [int(name.removesuffix(".json")) for name in names]
        if numbers[0] > self.number + 1:
            # Commits that a checkpoint holds may be gone. One that nobody holds is lost.
            self._load_checkpoint()
        expected = range(self.number + 1, numbers[-1] + 1)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            commits = list(pool.map(self._commit, expected)) if self._files.remote else map(self._commit, expected)
        for number, commit in zip(expected, commits, strict=True):
            if commit is not None:
                self.apply(commit)
            self.number = number
        if self.damaged:
            self._adopt()
        return self.number > before

    def apply(self, commit: Commit) -> None:
        """What the commit adds and removes. A segment that is live already, or was removed, stays so."""
        for entry in commit.add:
            known = self.segments.get(entry.name)
            if entry.name not in self.removed and (known is None or known.order == LAST_ORDER):
                self.segments[entry.name] = entry
        for name, when in commit.remove.items():
            self.segments.pop(name, None)
            self.removed[name] = when

    def checkpoint(self) -> None:
        """Write what this catalog holds, so that openings need not read the commits before."""
        state = Commit(writer="checkpoint", add=list(self.segments.values()), remove=self.removed)
        self._files.write({numbered(CHECKPOINTS, self.number): state.to_bytes()})

    def forget(self, names: Iterable[str]) -> None:
        """Removed segments whose files are gone."""
        for name in names:
            self.removed.pop(name, None)

    def _load_checkpoint(self) -> None:
        for name in reversed(self._files.names(CHECKPOINTS)):
            number = int(name.removesuffix(".json"))
            if number <= self.number:
                return
            if (state := self._read(f"{CHECKPOINTS}/{name}")) is not None:
                self.segments = {entry.name: entry for entry in state.add}
                self.removed = dict(state.remove)
                self.number = number
                return

    def _commit(self, number: int) -> Commit | None:
        return self._read(numbered(COMMITS, number))

    def _read(self, name: str) -> Commit | None:
        try:
            said = document.from_bytes(self._files.read(name), name)
            check_version(said, f"{self._files}/{name}")
            return Commit.model_validate(said)
        except (Damaged, FileNotFoundError, ValidationError):
            self.damaged.add(name)
            return None

    def _adopt(self) -> None:
        """Find the segments that a damaged commit may have named: each says of itself all that a commit says."""
        for name in self._files.names(SEGMENTS):
            if name not in self.segments and name not in self.removed and (entry := self._described(name)):
                self.segments[name] = entry

    def _described(self, name: str) -> SegmentEntry | None:
        from tvkd_shared.store.segment import entry_of  # noqa: PLC0415

        try:
            return entry_of(self._files, name)
        except (Damaged, FileNotFoundError):
            return None
