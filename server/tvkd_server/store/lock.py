"""One writer a store: flock on a file, which the kernel lets go when the process dies, however it dies."""

import fcntl
import os
from pathlib import Path

from tvkd_shared.errors import StoreInUse

_HELD: set[int] = set()


def _let_go_in_child() -> None:
    # A forked engine process must not keep the store locked after its server was killed.
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


class Lock:
    """Held from construction to `release`. Raises StoreInUse, naming the process that holds it."""

    def __init__(self, store: Path) -> None:
        self._file = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise StoreInUse(
                f"the store {store} is written by process {holder or 'of unknown id'}; "
                "stop it, or use a store of your own"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        _HELD.add(self._file)

    def release(self) -> None:
        if self._file in _HELD:
            _HELD.discard(self._file)
            os.close(self._file)
