"""Which segments are live: commits in one order, each published by one conditional write.

Commit N is `commits/N.json`. Whoever creates it has read all before it, so that the order of commits is one for every
reader, and of two values of a key the one in the earlier commit counts, for good. A checkpoint holds what all commits
up to its number say, so that an opening reads few of them.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from tvkd_shared.store import document
from tvkd_shared.store.block import Damaged
from tvkd_shared.store.entry import LAST_ORDER, SEGMENTS, SegmentEntry
from tvkd_shared.store.files import AT_ONCE, Files, file_numbers
from tvkd_shared.store.format import FORMAT_NAME, FORMAT_VERSION, check_version
from tvkd_shared.store.segment import entry_of

COMMITS, CHECKPOINTS = "commits", "checkpoints"
_MANY = 512
"""Commits since that a checkpoint may spare."""


class Commit(BaseModel):
    """Segments that come and go in one step. `remove` says when, in seconds since 1970."""

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
    `adopted`   segments that were found then, with no commit that names them: a writer commits to them
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._stamp: object = None
        self.number = 0
        self.segments: Mapping[str, SegmentEntry] = {}
        self.removed: dict[str, float] = {}
        self.damaged: set[str] = set()
        self.adopted: set[str] = set()
        self._missed = False
        self._load_checkpoint()
        self.refresh()

    def refresh(self) -> None:
        """Take in the commits since. When it raises, nothing is taken in."""
        stamp = self._files.stamp(COMMITS, f"{self.number + 1:012d}.json")
        if stamp == self._stamp:
            return
        while commits := self._since():
            self.apply(commits)
        if self._missed:
            self._adopt()
        self._stamp = stamp

    def _since(self) -> dict[int, Commit | None]:
        """The commits since, in order; None for one that is damaged or lost."""
        numbers = file_numbers(self._files, COMMITS, ".json", after=self.number)
        if numbers and (numbers[0] > self.number + 1 or len(numbers) > _MANY):
            # Commits that a checkpoint holds may be gone. One that nobody holds is lost.
            self._load_checkpoint()
            numbers = [number for number in numbers if number > self.number]
        if not numbers:
            return {}
        expected = range(self.number + 1, numbers[-1] + 1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            read = list(pool.map(self._commit, expected) if self._files.remote else map(self._commit, expected))
        if FileNotFoundError in read and self._load_checkpoint():
            return self._since()  # they were collected meanwhile
        commits: dict[int, Commit | None] = {}
        for number, commit in zip(expected, read, strict=True):
            commits[number] = commit if isinstance(commit, Commit) else None
            if commits[number] is None:
                self._miss(numbered(COMMITS, number))
        return commits

    def apply(self, commits: Mapping[int, Commit | None]) -> None:
        """What commits add and remove. A segment that is live already, or was removed, stays so."""
        segments, removed = dict(self.segments), dict(self.removed)
        for commit in filter(None, commits.values()):
            for entry in commit.add:
                known = segments.get(entry.name)
                if entry.name not in removed and (known is None or known.order == LAST_ORDER):
                    segments[entry.name] = entry
            for name, when in commit.remove.items():
                segments.pop(name, None)
                removed[name] = when
        self.segments, self.removed, self.number = segments, removed, max(commits)
        self.adopted = {name for name in self.adopted if name in segments and segments[name].order == LAST_ORDER}

    def checkpoint(self) -> None:
        """Write what this catalog holds, so that openings need not read the commits before."""
        state = Commit(writer="checkpoint", add=list(self.segments.values()), remove=self.removed)
        self._files.write({numbered(CHECKPOINTS, self.number): state.to_bytes()})

    def forget(self, names: Iterable[str]) -> None:
        """Removed segments whose files are gone."""
        for name in names:
            self.removed.pop(name, None)

    def _load_checkpoint(self) -> bool:
        """Start from the newest checkpoint that is sound, if it knows more. Returns whether it does."""
        for number in reversed(file_numbers(self._files, CHECKPOINTS, ".json", after=self.number)):
            name = numbered(CHECKPOINTS, number)
            state = self._read(name)
            if isinstance(state, Commit):
                self.segments = {entry.name: entry for entry in state.add}
                self.removed = dict(state.remove)
                self.number = number
                return True
            if state is Damaged:
                self._miss(name)
        return False

    def _miss(self, name: str) -> None:
        self.damaged.add(name)
        self._missed = True

    def _commit(self, number: int) -> Commit | type[Exception]:
        return self._read(numbered(COMMITS, number))

    def _read(self, name: str) -> Commit | type[Exception]:
        """What is written there, or why it cannot be read."""
        try:
            said = document.from_bytes(self._files.read(name), name)
            check_version(said, f"{self._files}/{name}")
            return Commit.model_validate(said)
        except FileNotFoundError:
            return FileNotFoundError
        except (Damaged, ValidationError):
            return Damaged

    def _adopt(self) -> None:
        """Find the segments that a damaged commit may have named: each says of itself all that a commit says."""
        names = [name for name in self._files.names(SEGMENTS) if name not in self.segments and name not in self.removed]
        found = {name: entry for name in names if (entry := self._described(name))}
        self.segments = {**self.segments, **found}
        self.adopted |= found.keys()
        self._missed = False

    def _described(self, name: str) -> SegmentEntry | None:
        try:
            return entry_of(self._files, name)
        except (Damaged, FileNotFoundError):
            return None
