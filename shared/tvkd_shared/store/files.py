"""Where a store's files rest: a folder on a local disk, or a prefix in object storage. Names are relative, with `/`.

What `create` and `write` returned from is durable. `create` is the one conditional write that the store is built on: of
any number of writers that create one name, one succeeds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvkd_shared.errors import InvalidRequest

SCHEMES = ("s3", "gs", "az")
AT_ONCE = 16
"""Requests that one call has under way at object storage."""


@dataclass(frozen=True, slots=True)
class File:
    """A file's name, its size in bytes, and the time it was last written, in seconds since 1970."""

    name: str
    size: int
    modified: float


class Files(Protocol):
    """Raises FileNotFoundError for a name that is not there, StoreUnavailable when disk or service fails."""

    remote: bool
    index: Path
    """Where a local disk keeps the store's index: beside the store's files, or in the user's cache folder."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start … stop − 1 of a file, to its end without `stop`. A negative `start` counts from the end."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet. False when it is there: then it stays as it is."""
        ...

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Write files, in place of what was there before. The last of the mapping is written when the others are."""
        ...

    def names(self, folder: str, after: str = "") -> list[str]:
        """Names in a folder that sort after `after`, sorted, without the folder's own."""
        ...

    def stamp(self, folder: str, name: str) -> object:
        """Equal to the one before only if nothing was added to the folder since, least of all a file of that name."""
        ...

    def walk(self, folder: str) -> Iterator[File]:
        """Every file under a folder, at any depth, leftovers of crashes included."""
        ...

    def remove(self, names: list[str]) -> None:
        """Remove files; one that is gone already is no error."""
        ...


def file_numbers(files: Files, folder: str, suffix: str, after: int = 0) -> list[int]:
    """Numbers above `after` of a folder's files, in order. What else lies there is not ours."""
    names = files.names(folder, after=f"{after:012d}{suffix}")
    return [int(name[:12]) for name in names if name[:12].isdecimal() and name[12:] == suffix]


def files_at(place: str | Path) -> Files:
    """A folder, or a URL of object storage. Raises InvalidRequest for a URL that is not one of those."""
    scheme, separator, _ = str(place).partition("://")
    if not separator:
        from tvkd_shared.store.folder import Folder  # noqa: PLC0415 - imports nothing of the other kind

        return Folder(Path(place))
    if scheme not in SCHEMES:
        raise InvalidRequest(f"store {place}: {scheme} is none of {', '.join(SCHEMES)}; a folder has no scheme")
    from tvkd_shared.store.bucket import Bucket  # noqa: PLC0415

    return Bucket(str(place))
