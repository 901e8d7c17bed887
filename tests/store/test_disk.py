"""A second writer, a full disk, a folder that is not writable: one clear line, and nothing committed is lost."""

import os
import resource
import signal
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from stored_records import TEACHER, as_killed, bits, key_of, numbered, record_of

from tvkd_server.store import LocalStore
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


def soon(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    with closing(LocalStore(tmp_path)), pytest.raises(StoreInUse, match=f"written by process {os.getpid()}; stop it"):
        LocalStore(tmp_path)
    LocalStore(tmp_path).close()


def test_a_forked_child_does_not_keep_the_store_locked(tmp_path):
    store = LocalStore(tmp_path)
    ready, started = os.pipe()
    child = os.fork()
    if not child:
        os.write(started, b".")
        signal.pause()
    try:
        os.read(ready, 1)
        store.close()
        LocalStore(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_full_disk_fails_the_put_and_loses_nothing_committed(tmp_path):
    put = []
    with closing(LocalStore(tmp_path)) as store:
        with files_no_larger_than(100_000), pytest.raises(StoreUnavailable, match="cannot be written: "):
            for n in range(10_000):
                store.put(TEACHER, numbered([n]))
                put.append(n)
        assert len(put) > 10
        found = store.get([key_of(n) for n in range(len(put) + 1)])
        assert [bits(record) for record in found] == [*(bits(record_of(n)) for n in put), None]
        store.put(TEACHER, numbered([len(put)]))
    with closing(StoreReader(tmp_path)) as reader:
        assert reader.counts().sequences == len(put) + 1


def test_a_full_disk_fails_the_seal_and_loses_nothing_committed(tmp_path):
    numbers = range(200)
    right = [bits(record_of(n)) for n in numbers]
    with closing(LocalStore(tmp_path)) as store:
        store.put(TEACHER, numbered(numbers))
        with files_no_larger_than(3000), pytest.raises(StoreUnavailable, match="cannot be written: "):
            store.seal()
        assert not store.files.names("commits")
        assert not any(path.is_file() for path in (tmp_path / "segments").rglob("*"))  # its space is given back
        assert [bits(record) for record in store.get([key_of(n) for n in numbers])] == right
        store.seal()
        assert [bits(record) for record in store.get([key_of(n) for n in numbers])] == right


def test_a_folder_that_is_not_writable_is_no_store_to_write(open_folder):
    LocalStore(open_folder / "store").close()
    with without_write_access(open_folder / "store"), pytest.raises(StoreUnavailable, match="cannot be opened: "):
        LocalStore(open_folder / "store")


def test_a_closed_store_is_read_from_a_folder_that_is_not_writable(open_folder):
    with closing(LocalStore(open_folder / "store")) as store:
        store.put(TEACHER, numbered([1]))
    with without_write_access(open_folder / "store"), closing(StoreReader(open_folder / "store")) as reader:
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))


def test_a_killed_store_is_read_from_a_folder_that_is_not_writable(open_folder):
    with closing(LocalStore(open_folder / "store")) as store:
        store.put(TEACHER, numbered([1]))
        store.seal()
        store.put(TEACHER, numbered([2]))
        killed = as_killed(open_folder / "store", open_folder / "killed")
    with without_write_access(killed), closing(StoreReader(killed)) as reader:
        assert [bits(record) for record in reader.get([key_of(1), key_of(2)])] == [bits(record_of(n)) for n in (1, 2)]


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_after_a_failed_fsync_nothing_acknowledged_is_lost_and_the_store_goes_on(tmp_path, monkeypatch, call):
    def fails(*_):
        raise OSError(5, "Input/output error")

    with closing(LocalStore(tmp_path / "live")) as store:
        store.put(TEACHER, numbered([1]))
        with monkeypatch.context() as disk:
            disk.setattr(os, call, fails)
            with pytest.raises(StoreUnavailable, match=r"^the store .* cannot be \w+: .*Input/output error[^\n]*$"):
                store.put(TEACHER, numbered([2])) if call == "fdatasync" else store.seal()
        assert [bits(record) for record in store.get([key_of(1), key_of(2)])] == [bits(record_of(1)), None]
        store.put(TEACHER, numbered([2]))
        killed = as_killed(tmp_path / "live", tmp_path / "killed")
        store.seal()
    for path in (killed, tmp_path / "live"):
        with closing(LocalStore(path)) as store:
            assert [bits(record) for record in store.get([key_of(1), key_of(2)])] == [
                bits(record_of(n)) for n in (1, 2)
            ]


def test_a_store_that_cannot_be_sealed_is_closed_with_a_warning_and_loses_nothing(tmp_path, caplog):
    store = LocalStore(tmp_path)
    store.put(TEACHER, numbered(range(100)))
    with files_no_larger_than(3000):
        store.close()
    assert "what is pending stays in the log" in caplog.text
    with closing(LocalStore(tmp_path)) as store:
        assert [bits(record) for record in store.get([key_of(n) for n in range(100)])] == [
            bits(record_of(n)) for n in range(100)
        ]


def test_a_background_seal_that_fails_is_tried_again_when_as_much_again_waits(tmp_path, caplog):
    """The file where a folder must be is what the disk has against it."""
    with closing(LocalStore(tmp_path, seal_bytes=5000)) as store:
        (tmp_path / "segments").touch()
        for n in range(40):
            store.put(TEACHER, numbered([n]))
        assert soon(lambda: "cannot be written" in caplog.text)
        (tmp_path / "segments").unlink()
        for n in range(40, 100):
            store.put(TEACHER, numbered([n]))
        assert soon(lambda: store.files.names("commits"))
        assert [bits(record) for record in store.get([key_of(n) for n in range(100)])] == [
            bits(record_of(n)) for n in range(100)
        ]
    assert caplog.text.count("what is pending stays in the log") < 6


def test_a_closed_store_takes_nothing_more_and_says_so(tmp_path):
    store = LocalStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        store.put(TEACHER, numbered([1]))
