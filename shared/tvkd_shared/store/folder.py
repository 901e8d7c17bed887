"""A store's files in a folder on a local disk."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store.files import File

MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    "nfs4?|cifs|smb3|smbfs|afs|9p|virtiofs|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2"
    "|fuse[.](sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|juicefs)"
)

_UNFINISHED = "."
"""First letter of a file that is being written. `names` leaves those out; `walk` gives them."""


class Folder:
    """See `Files`. A name appears whole or not at all: written under another, made durable, then linked or renamed."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "index"

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with disk_faults(self.root, "read"):
            descriptor = os.open(self.root / name, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                first = max(0, size + start) if start < 0 else start
                last = size if stop is None else min(stop, size)
                parts = []
                while first < last:  # one call reads two gigabytes at most
                    parts.append(os.pread(descriptor, last - first, first))
                    first += len(parts[-1])
                    if not parts[-1]:
                        break
                return b"".join(parts)
            finally:
                os.close(descriptor)

    def create(self, name: str, content: bytes) -> bool:
        with disk_faults(self.root, "written"):
            path = self.root / name
            self.make(path.parent)
            unfinished = self._unfinished(path, content)
            try:
                os.link(unfinished, path)
            except FileExistsError:
                return False
            finally:
                unfinished.unlink()
            sync(path.parent)
            return True

    def write(self, contents: Mapping[str, bytes]) -> None:
        with disk_faults(self.root, "written"):
            for name, content in contents.items():
                path = self.root / name
                self.make(path.parent)
                self._unfinished(path, content).replace(path)
            for folder in {(self.root / name).parent for name in contents}:
                sync(folder)

    def names(self, folder: str, after: str = "") -> list[str]:
        with disk_faults(self.root, "read"):
            try:
                found = os.listdir(self.root / folder)  # noqa: PTH208 - names are wanted, of many files
            except FileNotFoundError:
                return []
        return sorted(name for name in found if name > after and not name.startswith(_UNFINISHED))

    def stamp(self, folder: str, name: str) -> object:
        with disk_faults(self.root, "read"):
            path = self.root / folder
            # The name too: two changes within one tick of the clock leave one time.
            return (path.stat().st_mtime_ns, (path / name).exists()) if path.exists() else None

    def walk(self, folder: str) -> Iterator[File]:
        with disk_faults(self.root, "read"):
            for path, _, names in os.walk(self.root / folder):
                for name in names:
                    file = Path(path, name)
                    with contextlib.suppress(FileNotFoundError):
                        said = file.stat()
                        yield File(str(file.relative_to(self.root)), said.st_size, said.st_mtime)

    def remove(self, names: list[str]) -> None:
        with disk_faults(self.root, "written"):
            for name in names:
                (self.root / name).unlink(missing_ok=True)
            for folder in sorted({parent for name in names for parent in Path(name).parents}, reverse=True):
                if len(folder.parts) > 1:  # the store's own folders stay
                    with contextlib.suppress(OSError):
                        (self.root / folder).rmdir()

    def _unfinished(self, path: Path, content: bytes) -> Path:
        """The content, durable, under a name of its own beside `path`."""
        unfinished = path.with_name(f"{_UNFINISHED}{path.name}.{uuid.uuid4().hex}")
        try:
            with unfinished.open("xb", buffering=0) as file:
                view = memoryview(content)
                while view:  # a disk that is nearly full takes a part, and says so only when it is asked again
                    view = view[os.write(file.fileno(), view) :]
                os.fsync(file.fileno())
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return unfinished

    def make(self, path: Path) -> None:
        """Make a folder, and its parents, durably."""
        missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync(folder.parent)


@contextlib.contextmanager
def disk_faults(root: str | Path, task: str) -> Iterator[None]:
    """A failing disk becomes StoreUnavailable, a name that is read and not there FileNotFoundError."""
    try:
        yield
    except StoreUnavailable:
        raise
    except OSError as error:
        if task == "read" and isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise FileNotFoundError(f"{error.filename} is not there") from error
        more = "" if task == "read" else "; it needs free space and a local, writable disk"
        raise StoreUnavailable(f"the store {root} cannot be {task}: {error}{more}") from error


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that a path is on, None for a local one, or where that cannot be known."""
    try:
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    kinds = {}
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        kinds[point] = rest.split()[0]
    real = path.resolve()
    kind = next((kinds[str(parent)] for parent in (real, *real.parents) if str(parent) in kinds), "")
    return kind if _NETWORK.fullmatch(kind) else None
