"""Writing the durable log: what `append` returned from is on disk."""

import os
from collections.abc import Iterable
from contextlib import suppress

from tvkd_shared.store.folder import Folder, sync
from tvkd_shared.store.log import FOLDER, log_names, new_log_name


class Log:
    """Raises OSError when the disk fails: then nothing of that append counts."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._root = folder.root / FOLDER
        self._root.mkdir(exist_ok=True)
        sync(folder.root)
        self.older = log_names(folder)
        """Files that are no longer written to, and not yet sealed."""
        self._name = self.older[-1] if self.older else ""
        self._file: int | None = None
        self._size = 0

    def append(self, record_bytes: bytes) -> None:
        """Write whole records."""
        file = self._start() if self._file is None else self._file
        try:
            view = memoryview(record_bytes)
            while view:
                view = view[os.write(file, view) :]
            os.fdatasync(file)
            self._size += len(record_bytes)
        except BaseException:
            # After a failed fsync the file cannot be trusted: what was acknowledged in it was synced before.
            with suppress(OSError):
                os.ftruncate(file, self._size)
            self.rotate()
            raise

    def rotate(self) -> list[str]:
        """Write no more to the file that is open. Returns all files that wait to be sealed."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            self.older.append(self._name)
        return list(self.older)

    def drop(self, names: Iterable[str]) -> None:
        """Remove files whose blocks are in segments."""
        self._folder.remove(list(names))
        self.older = [name for name in self.older if name not in set(names)]

    def close(self) -> None:
        self.rotate()

    def _start(self) -> int:
        name = new_log_name(after=self._name)
        path = self._folder.root / name
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            sync(self._root)
        except BaseException:
            os.close(file)
            with suppress(OSError):
                path.unlink()
            raise
        self._file, self._name, self._size = file, name, 0
        return file
