"""A second writer, a full disk, a folder that is not writable: one clear line, and nothing committed is lost."""

import os
import resource
import shutil
import signal
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from stored_records import bits, key_of, record_of

from tvkd_server.store import Store
from tvkd_shared.errors import StoreInUse, StoreUnavailable
from tvkd_shared.store import StoreReader

NOBODY = 65534


@contextmanager
def files_no_larger_than(size: int):
    """As a full disk: a write beyond `size` bytes of any file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def without_write_access(path: Path):
    """The folder and its files can be read and not written, also when root runs the tests."""
    for file in [path, *path.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    if root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for file in [path, *path.rglob("*")]:
            file.chmod(0o755)


@pytest.fixture
def open_folder():
    """A folder that another user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    with closing(Store(tmp_path)), pytest.raises(StoreInUse, match=f"written by process {os.getpid()}; stop it"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_a_forked_child_does_not_keep_the_store_locked(tmp_path):
    store = Store(tmp_path)
    ready, started = os.pipe()
    child = os.fork()
    if not child:
        os.write(started, b".")
        signal.pause()
    try:
        os.read(ready, 1)
        store.close()
        Store(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_full_disk_fails_the_put_and_loses_nothing_committed(tmp_path):
    put = []
    with closing(Store(tmp_path)) as store:
        with files_no_larger_than(500_000), pytest.raises(StoreUnavailable, match="cannot be written: "):
            for n in range(10_000):
                store.put([(key_of(n), record_of(n))])
                put.append(n)
        assert len(put) > 10
        found = store.get([key_of(n) for n in range(len(put) + 1)])
        assert [bits(record) for record in found] == [*(bits(record_of(n)) for n in put), None]
        store.put([(key_of(len(put)), record_of(len(put)))])
    with closing(StoreReader(tmp_path)) as reader:
        assert reader.counts().sequences == len(put) + 1


def test_a_full_disk_fails_the_seal_and_loses_nothing_committed(tmp_path):
    numbers = range(200)
    right = [bits(record_of(n)) for n in numbers]
    with closing(Store(tmp_path)) as store:
        store.put([(key_of(n), record_of(n)) for n in numbers])
        with files_no_larger_than(3000), pytest.raises(StoreUnavailable, match="cannot be sealed: "):
            store.seal()
        assert not list((tmp_path / "segments").iterdir())
        assert [bits(record) for record in store.get([key_of(n) for n in numbers])] == right
        store.seal()
        assert [bits(record) for record in store.get([key_of(n) for n in numbers])] == right


def test_a_folder_that_is_not_writable_is_no_store_to_write(open_folder):
    Store(open_folder / "store").close()
    with without_write_access(open_folder / "store"), pytest.raises(StoreUnavailable, match="cannot be opened: "):
        Store(open_folder / "store")


def test_a_closed_store_is_read_from_a_folder_that_is_not_writable(open_folder):
    with closing(Store(open_folder / "store")) as store:
        store.put([(key_of(1), record_of(1))])
    with without_write_access(open_folder / "store"), closing(StoreReader(open_folder / "store")) as reader:
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))


@pytest.mark.parametrize("left_out", ["", "*-shm"])
def test_a_killed_store_in_a_folder_that_is_not_writable_is_read_or_refused_in_one_line(open_folder, left_out):
    with closing(Store(open_folder / "store")) as store:
        store.put([(key_of(1), record_of(1))])
        killed = shutil.copytree(store.path, open_folder / "killed", ignore=shutil.ignore_patterns(left_out))
    with without_write_access(killed):
        if left_out:
            with pytest.raises(StoreUnavailable, match="not closed and its folder is not writable"):
                StoreReader(killed)
        else:
            with closing(StoreReader(killed)) as reader:
                assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))


def test_a_closed_store_says_so(tmp_path):
    store = Store(tmp_path)
    store.close()
    store.close()
    for use in (
        lambda: store.get([key_of(1)]),
        lambda: store.put([(key_of(1), record_of(1))]),
        store.seal,
        store.counts,
    ):
        with pytest.raises(StoreUnavailable, match="is closed"):
            use()
