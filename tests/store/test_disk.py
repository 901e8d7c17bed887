"""A second writer, a full disk, a folder that is not writable: one clear line, and nothing committed is lost."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from stored_records import TEACHER, as_killed, bits, found_in, key_of, numbered, record_of

from full_disk import files_no_larger_than
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader, open_store, recent
from tvkd_shared.store import folder as folder_module
from tvkd_shared.store.verify import verify

NOBODY = 65534


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


def test_two_processes_write_one_folder_and_agree(tmp_path):
    code = """
import sys
from stored_records import TEACHER, bits, key_of, record_of
from tvkd_shared.store import open_store

store = open_store(sys.argv[1], seal_bytes=3_000)
sys.stdin.readline()
for n in range(300):
    (stored,) = store.put(TEACHER, [(key_of(n), record_of(n, variant=int(sys.argv[2])))])
    print(bits(stored)["entropy"].hex(), flush=True)
store.close()
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, str(variant)], cwd=Path(__file__).parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for variant in range(2)
    ]  # fmt: skip
    time.sleep(1)
    for process in running:
        process.stdin.write("\n")
        process.stdin.close()
    answers = [process.stdout.read().split() for process in running]
    with closing(StoreReader(tmp_path)) as reader:
        found = [bits(record)["entropy"].hex() for record in reader.get([key_of(n) for n in range(300)])]
        assert reader.counts().sequences == 300
    assert answers == [found, found]


def test_a_put_in_a_forked_child_leaves_the_parent_s_store_whole(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1]))
        child = os.fork()
        if not child:
            store.put(TEACHER, numbered([2]))
            os._exit(store.recent._process != os.getpid())
        assert os.waitpid(child, 0)[1] == 0
        store.put(TEACHER, numbered([3]))
        assert found_in(store, [key_of(n) for n in (1, 2, 3)]) == [bits(record_of(n)) for n in (1, 2, 3)]
        assert [one for one in verify(store) if "recent" in one.file] == []


def test_a_process_that_does_not_let_go_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(recent, "BUSY_SECONDS", 0.2)
    with closing(open_store(tmp_path)) as store, closing(sqlite3.connect(tmp_path / "recent.sqlite")) as other:
        store.put(TEACHER, numbered([1]))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="another process has used it for 0 seconds"):
            store.put(TEACHER, numbered([2]))
        other.execute("ROLLBACK")


READ_ONLY_READER = """
import sys
from stored_records import found_in, key_of
from tvkd_shared.store import StoreReader

try:
    open(sys.argv[1] + "/store.json", "a")
except OSError:
    print([one is not None for one in found_in(StoreReader(sys.argv[1]), [key_of(1), key_of(2), key_of(3)])])
"""


@pytest.mark.parametrize("state", ["live", "killed", "killed with shared memory", "closed"])
def test_a_store_is_read_from_a_read_only_mount(tmp_path, state):
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1"'
    path = tmp_path / "live"
    with closing(open_store(path)) as store:
        store.put(TEACHER, numbered([1]))
        store.seal()
        store.put(TEACHER, numbered([2]))
        if state.startswith("killed"):
            ignore = None if "memory" in state else shutil.ignore_patterns("*-shm")
            path = shutil.copytree(path, tmp_path / "killed", ignore=ignore)
        if state == "closed":
            store.close()
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", path, sys.executable, READ_ONLY_READER]
        ended = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.stdout == "[True, True, False]\n", ended.stderr


@pytest.fixture
def on_nfs(tmp_path, monkeypatch):
    """A folder of which the system says that it is on NFS."""
    mounts = tmp_path / "mountinfo"
    folder = tmp_path / "an nfs"
    escaped = str(folder).replace(" ", "\\040")
    mounts.write_text(f"22 1 0:21 / / rw - ext4 /dev/x rw\n36 22 0:32 / {escaped} rw shared:1 - nfs4 server:/x rw\n")

    def mount():
        monkeypatch.setattr(folder_module, "MOUNTS", mounts)
        return folder

    return mount, folder


def test_a_network_file_system_is_not_written_and_is_read_when_nothing_is_recent(on_nfs):
    mount, folder = on_nfs
    with closing(open_store(folder)) as store:
        store.put(TEACHER, numbered([1]))
        as_killed(folder, folder / "killed")
    mount()
    with pytest.raises(StoreUnavailable, match=r"network file system \(nfs4\).*use a local disk, or object storage"):
        open_store(folder)
    with closing(StoreReader(folder)) as reader:
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))
    with pytest.raises(StoreUnavailable, match="still has blocks in it: stop the server, or run `tvkd store compact`"):
        StoreReader(folder / "killed")


def test_a_full_disk_fails_the_put_and_loses_nothing_committed(tmp_path):
    put = []
    with closing(open_store(tmp_path)) as store:
        with files_no_larger_than(500_000), pytest.raises(StoreUnavailable, match="cannot be written: "):
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
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered(numbers))
        with files_no_larger_than(3000), pytest.raises(StoreUnavailable, match="cannot be written: "):
            store.seal()
        assert not store.files.names("commits")
        assert not any(path.is_file() for path in (tmp_path / "segments").rglob("*"))  # its space is given back
        assert found_in(store, [key_of(n) for n in numbers]) == right
        store.seal()
        assert found_in(store, [key_of(n) for n in numbers]) == right


def test_a_folder_that_is_not_writable_is_no_store_to_write(open_folder):
    open_store(open_folder / "store").close()
    with without_write_access(open_folder / "store"), pytest.raises(StoreUnavailable, match="cannot be written: "):
        open_store(open_folder / "store")


def test_a_closed_store_is_read_from_a_folder_that_is_not_writable(open_folder):
    with closing(open_store(open_folder / "store")) as store:
        store.put(TEACHER, numbered([1]))
    with without_write_access(open_folder / "store"), closing(StoreReader(open_folder / "store")) as reader:
        assert bits(reader.get([key_of(1)])[0]) == bits(record_of(1))


def test_a_killed_store_is_read_from_a_folder_that_is_not_writable(open_folder):
    with closing(open_store(open_folder / "store")) as store:
        store.put(TEACHER, numbered([1]))
        store.seal()
        store.put(TEACHER, numbered([2]))
        killed = as_killed(open_folder / "store", open_folder / "killed")
    with without_write_access(killed), closing(StoreReader(killed)) as reader:
        assert found_in(reader, [key_of(1), key_of(2)]) == [bits(record_of(n)) for n in (1, 2)]


def test_after_a_failed_fsync_nothing_acknowledged_is_lost_and_the_store_goes_on(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    with closing(open_store(tmp_path / "live")) as store:
        store.put(TEACHER, numbered([1, 2]))
        with monkeypatch.context() as disk:
            disk.setattr(os, "fsync", fails)
            with pytest.raises(StoreUnavailable, match=r"^the store .* cannot be \w+: .*Input/output error[^\n]*$"):
                store.seal()
        assert found_in(store, [key_of(1), key_of(2)]) == [bits(record_of(1)), bits(record_of(2))]
        killed = as_killed(tmp_path / "live", tmp_path / "killed")
        store.seal()
    for path in (killed, tmp_path / "live"):
        with closing(open_store(path)) as store:
            assert found_in(store, [key_of(1), key_of(2)]) == [bits(record_of(n)) for n in (1, 2)]


def test_a_store_that_cannot_be_sealed_is_closed_with_a_warning_and_loses_nothing(tmp_path, caplog):
    store = open_store(tmp_path)
    store.put(TEACHER, numbered(range(100)))
    with files_no_larger_than(3000):
        store.close()
    assert "recent blocks stay in SQLite" in caplog.text
    with closing(open_store(tmp_path)) as store:
        assert found_in(store, [key_of(n) for n in range(100)]) == [bits(record_of(n)) for n in range(100)]


def test_a_background_seal_that_fails_is_tried_again_when_as_much_again_waits(tmp_path, caplog):
    """The file where a folder must be is what the disk has against it."""
    with closing(open_store(tmp_path, seal_bytes=5000)) as store:
        (tmp_path / "segments").touch()
        for n in range(40):
            store.put(TEACHER, numbered([n]))
        assert soon(lambda: "cannot be written" in caplog.text)
        (tmp_path / "segments").unlink()
        for n in range(40, 100):
            store.put(TEACHER, numbered([n]))
        assert soon(lambda: store.files.names("commits"))
        assert found_in(store, [key_of(n) for n in range(100)]) == [bits(record_of(n)) for n in range(100)]
    assert caplog.text.count("recent blocks stay in SQLite") < 6


def test_a_closed_store_takes_nothing_more_and_says_so(tmp_path):
    store = open_store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        store.put(TEACHER, numbered([1]))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_is_deleted_while_it_is_open_is_not_written_as_if_it_were_there(replaced, tmp_path):
    store = open_store(tmp_path / "values")
    store.put(TEACHER, [(key_of(1), record_of(1))])
    shutil.rmtree(tmp_path / "values")
    if replaced:
        open_store(tmp_path / "values").close()
    with pytest.raises(StoreUnavailable, match="deleted or replaced while it was open"):
        store.put(TEACHER, [(key_of(2), record_of(2))])
    store.close()
