"""Which segments are live: commits in one order, each published by one conditional write.

Commit N is `commits/N.json`. Whoever creates it has read all commits before it, so the order of commits is the same for
every reader, and of two copies of a column of a key the one in the earlier commit counts, for good. A checkpoint holds
what all commits up to its number say together, so that a reader that opens the store reads few of them.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.files import AT_ONCE, Files, file_numbers
from tvkd_shared.store.format import FORMAT_NAME, FORMAT_VERSION, check_version
from tvkd_shared.store.segment import SegmentEntry

COMMITS, CHECKPOINTS = "commits", "checkpoints"
_MANY = 512
"""With more new commits than this a refresh looks for a checkpoint first."""


class Commit(BaseModel):
    """Segments that are added and removed in one step. `remove` says when, in seconds since 1970."""

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
    """The live segments as of the last commit that was read. One thread at a time changes it.

    `segments`  name → entry         `removed`  name → when it was removed, while its files may still exist
    `number`    of the last commit   `damaged`  commits and checkpoints that cannot be read: what they named is missing
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._stamp: object = None
        self.number = 0
        self.segments: Mapping[str, SegmentEntry] = {}
        self.removed: dict[str, float] = {}
        self.damaged: set[str] = set()
        self._load_checkpoint()
        self.refresh()

    def refresh(self) -> None:
        """Read the commits that were added since. When it raises, nothing has changed."""
        stamp = self._files.stamp(COMMITS, f"{self.number + 1:012d}.json")
        if stamp == self._stamp:
            return
        if commits := self._new_commits():
            self.apply(commits)
        self._stamp = stamp

    def read_next(self) -> None:
        """Read the commit after the last one, which is known to exist."""
        name = numbered(COMMITS, self.number + 1)
        commit = self._read(name)
        if not isinstance(commit, Commit):
            self.damaged.add(name)
        self.apply({self.number + 1: commit if isinstance(commit, Commit) else None})

    def _new_commits(self) -> dict[int, Commit | None]:
        """The commits since, in order; None for one that is damaged or lost."""
        numbers = file_numbers(self._files, COMMITS, ".json", after=self.number)
        if numbers and (numbers[0] > self.number + 1 or len(numbers) > _MANY):
            # Commits that a checkpoint holds may have been collected.
            self._load_checkpoint()
            numbers = [number for number in numbers if number > self.number]
        if not numbers:
            return {}
        expected = range(self.number + 1, numbers[-1] + 1)
        names = [numbered(COMMITS, number) for number in expected]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            read = list(pool.map(self._read, names) if self._files.remote else map(self._read, names))
        if FileNotFoundError in read and self._load_checkpoint():
            return self._new_commits()  # they were collected meanwhile
        self.damaged |= {name for name, commit in zip(names, read, strict=True) if not isinstance(commit, Commit)}
        return {number: c if isinstance(c, Commit) else None for number, c in zip(expected, read, strict=True)}

    def apply(self, commits: Mapping[int, Commit | None]) -> None:
        """Add and remove what commits say. A segment that is live or was removed already stays as it is."""
        segments, removed = dict(self.segments), dict(self.removed)
        for commit in filter(None, commits.values()):
            for entry in commit.add:
                if entry.name not in removed:
                    segments.setdefault(entry.name, entry)
            for name, when in commit.remove.items():
                segments.pop(name, None)
                removed[name] = when
        self.segments, self.removed, self.number = segments, removed, max(commits)

    def write_checkpoint(self) -> None:
        """Write what this catalog holds, so that opening the store need not read the commits before."""
        state = Commit(writer="checkpoint", add=list(self.segments.values()), remove=self.removed)
        self._files.write({numbered(CHECKPOINTS, self.number): state.to_bytes()})

    def forget(self, names: Iterable[str]) -> None:
        """Forget removed segments whose files no longer exist."""
        for name in names:
            self.removed.pop(name, None)

    def _load_checkpoint(self) -> bool:
        """Start from the newest sound checkpoint, if it is newer than this catalog. Returns whether it is."""
        for number in reversed(file_numbers(self._files, CHECKPOINTS, ".json", after=self.number)):
            state = self._read(numbered(CHECKPOINTS, number))
            if isinstance(state, Commit):
                self.segments = {entry.name: entry for entry in state.add}
                self.removed = dict(state.remove)
                self.number = number
                return True
            if state is Damaged:
                self.damaged.add(numbered(CHECKPOINTS, number))
        return False

    def _read(self, name: str) -> Commit | type[Exception]:
        """The commit in a file, or the kind of error that prevents it."""
        try:
            fields = document.from_bytes(self._files.read(name), name)
            check_version(fields, f"{self._files}/{name}")
            return Commit.model_validate(fields)
        except FileNotFoundError:
            return FileNotFoundError
        except (Damaged, ValidationError):
            return Damaged
