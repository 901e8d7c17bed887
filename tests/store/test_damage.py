"""Damaged bytes are a miss, never a value and never an exception; and a miss can be stored again."""

import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zarr
from stored_records import MEMORY, TEACHER, as_killed, bits, flip, found_in, key_of, numbered, record_of
from zarr.codecs import BloscCodec

from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.wire import TeacherInfo

NUMBERS = range(6)
KEYS = [key_of(n) for n in NUMBERS]
RIGHT = [bits(record_of(n, (0.5,))) for n in NUMBERS]
EVERY = 97  # of the bytes of a file, one in so many is flipped
INFO = TeacherInfo(
    id=TEACHER, name="n", dtype="float32", vocab_size=8, longest_sequence=16, engine="e", engine_version="1",
    temperatures=(0.5, 2.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def path():
    """A store as a killed server leaves it, with every kind of file: 0 … 3 are sealed, 4 and 5 recent."""
    with TemporaryDirectory(dir=MEMORY) as folder, closing(open_store(Path(folder, "live"))) as store:
        store.add_teacher(INFO.id, INFO.model_dump(mode="json"))
        for first in (0, 1, 2):
            store.put(TEACHER, numbered([first] if first < 2 else [2, 3], (0.5,)))
            store.seal()
            if first < 2:
                store.write_checkpoint()
        store.save_index()
        store.files.remove(["commits/000000000001.json"])  # a checkpoint holds it
        store.put(TEACHER, numbered([4, 5], (0.5,)))
        yield as_killed(Path(folder, "live"), Path(folder, "killed"))


@pytest.fixture
def copy(path):
    """A copy of the store to damage."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield shutil.copytree(path, Path(folder, "copy"))


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def flips(path, every, only=""):
    """(file, position) of one byte in `every` of each file, and of two at least."""
    return [
        (file, at)
        for n, file in enumerate(files_of(path))
        if str(file.relative_to(path)).startswith(only)
        for at in sorted({n % file.stat().st_size, file.stat().st_size - 1, *range(n, file.stat().st_size, every)})
    ]


def read(source):
    return found_in(source, KEYS, [0.5])


def is_right_or_missing(found):
    """Each number that came back is the right one; a record or a further temperature may be missing."""
    return all(record is None or record.items() <= right.items() for record, right in zip(found, RIGHT, strict=True))


def read_damaged(path):
    """What a reader finds; and where it misses something, it says so."""
    with closing(StoreReader(path)) as reader:
        found = read(reader)
        assert is_right_or_missing(found)
        assert reader.teachers() in ({}, {TEACHER: INFO.model_dump(mode="json")})
        return found, reader.counts().corrupt


def mends(path):
    """Whether all can be stored again, and reads right then, after reopening, and with the index made anew."""
    with closing(open_store(path)) as store:
        assert is_right_or_missing(read(store))
        store.put(TEACHER, numbered(NUMBERS, (0.5,)))
        store.add_teacher(INFO.id, INFO.model_dump(mode="json"))
        assert read(store) == RIGHT
    for _ in range(2):
        with closing(StoreReader(path)) as reader:
            assert read(reader) == RIGHT and len(reader.teachers()) == 1
        (path / "index").unlink(missing_ok=True)
    return True


def test_there_is_every_kind_of_file(path):
    assert {file.relative_to(path).parts[0] for file in files_of(path)} == {
        "store.json", "commits", "checkpoints", "segments", "teachers", "index",
        "recent.sqlite", "recent.sqlite-wal", "recent.json",
    }  # fmt: skip
    assert read_damaged(path) == (RIGHT, 0)


def test_a_flipped_byte_of_a_segment_is_never_served(path):
    missed = 0
    for file, position in flips(path, EVERY, "segments"):
        flip(file, position)
        found, corrupt = read_damaged(path)
        assert (corrupt > 0) == (found != RIGHT), (file, position)
        assert ("zarr.json" in file.name) <= (found == RIGHT), "a reader needs no zarr.json"
        missed += found != RIGHT
        flip(file, position)
    assert missed > 50


def test_a_flipped_byte_of_what_is_recent_is_never_served(path):
    missed = 0
    for file, position in flips(path, 7 * EVERY, "recent"):
        with TemporaryDirectory(dir=MEMORY) as folder:
            copy = shutil.copytree(path, Path(folder, "copy"))
            flip(copy / file.name, position)
            found, _ = read_damaged(copy)
            assert found[:4] == RIGHT[:4], (file, position)
            missed += found != RIGHT
    assert missed > 20


@pytest.mark.parametrize("kind", ["store.json", "checkpoints", "index"])
def test_a_flipped_byte_of_what_says_where_values_are_costs_none(path, kind):
    unread = ["index", "checkpoints/000000000001.json"]  # an opening reads the newest checkpoint
    for file, position in flips(path, 13, kind):
        flip(file, position)
        found, corrupt = read_damaged(path)
        assert found == RIGHT, (file, position)
        assert (corrupt > 0) == (str(file.relative_to(path)) not in unread), (file, position)
        flip(file, position)


def test_a_damaged_commit_takes_what_it_named_and_nothing_else(path):
    for file, position in flips(path, 13, "commits"):
        flip(file, position)
        found, corrupt = read_damaged(path)
        last = file.name == "000000000003.json"  # a checkpoint holds the others
        assert found == [None if last and n in (2, 3) else right for n, right in zip(NUMBERS, RIGHT, strict=True)]
        assert (corrupt > 0) == last
        flip(file, position)


def test_a_flipped_byte_of_a_teacher_s_provenance_hides_it(path):
    for file, position in flips(path, 7, "teachers"):
        flip(file, position)
        with closing(StoreReader(path)) as reader:
            assert (reader.teachers(), reader.corrupt, read(reader)) == ({}, 1, RIGHT)
        flip(file, position)


def test_what_a_flipped_byte_took_can_be_stored_again(path, tmp_path):
    for file, position in flips(path, 20 * EVERY):
        with TemporaryDirectory(dir=MEMORY) as folder:
            copy = shutil.copytree(path, Path(folder, "copy"))
            flip(copy / file.relative_to(path), position)
            assert mends(copy), (file, position)


def test_what_a_missing_file_or_folder_took_can_be_stored_again(path):
    for lost in [
        *files_of(path),
        *(path / "segments").iterdir(),
        path / "segments",
        path / "checkpoints",
    ]:
        with TemporaryDirectory(dir=MEMORY) as folder:
            copy = shutil.copytree(path, Path(folder, "copy"))
            (shutil.rmtree if lost.is_dir() else Path.unlink)(copy / lost.relative_to(path))
            found, _ = read_damaged(copy)
            assert (found == RIGHT) or {
                "segments",
                "commits",
                "checkpoints",
                "recent.sqlite",
                "recent.sqlite-wal",
            } & set(lost.relative_to(path).parts), lost
            assert mends(copy), lost


def test_the_precision_is_not_forgotten_when_store_json_is_damaged(tmp_path):
    with closing(open_store(tmp_path, mantissa_bits=10)) as store:
        store.put(TEACHER, numbered([1]))
    flip(tmp_path / "store.json", 20)
    for opened in (StoreReader, open_store, StoreReader):
        with closing(opened(tmp_path)) as store:
            assert store.format.mantissa_bits == 10


def test_a_torn_end_of_the_write_ahead_log_costs_only_what_was_never_acknowledged(copy):
    log = copy / "recent.sqlite-wal"
    log.write_bytes(log.read_bytes() + log.read_bytes()[32:9000])
    assert read_damaged(copy) == (RIGHT, 0)
    assert mends(copy)


@pytest.mark.parametrize("position", [0, 20, 100])
def test_a_damaged_sqlite_file_is_set_aside_with_a_warning_and_its_blocks_can_be_stored_again(
    tmp_path, caplog, position
):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1]))
    content = bytearray((tmp_path / "recent.sqlite").read_bytes())
    content[position : position + 4000] = bytes(b ^ 255 for b in content[position : position + 4000])
    (tmp_path / "recent.sqlite").write_bytes(content)
    with closing(open_store(tmp_path)) as store:
        assert bits(store.get([key_of(1)])[0]) == bits(record_of(1))
        store.put(TEACHER, numbered([2]))
        assert bits(store.get([key_of(2)])[0]) == bits(record_of(2))
    assert "recent.sqlite" in caplog.text and list(tmp_path.glob(".recent.sqlite.*"))


def test_a_damaged_sqlite_file_that_another_process_has_open_is_left_where_it_is(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1]))
        code = """
import sys
from stored_records import TEACHER, numbered
from tvkd_shared.store import open_store
store = open_store(sys.argv[1])
try:
    store.recent.set_aside()
except OSError as error:
    print(error)
"""
        ended = subprocess.run(
            [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    assert "another process has it open: stop that process" in ended.stdout
    assert StoreReader(tmp_path).get([key_of(1)]) != [None]


def test_a_row_that_fails_its_check_is_missing_and_can_be_stored_again(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered([1, 2]))
        with closing(sqlite3.connect(tmp_path / "recent.sqlite", isolation_level=None)) as sqlite:
            sqlite.execute("UPDATE blocks SET numbers = X'00000000' || substr(numbers, 5) WHERE id = 1")
        assert found_in(store, [key_of(1), key_of(2)]) == [None, bits(record_of(2))]
        assert store.counts().corrupt == 1 and store.counts().sequences == 1
        store.put(TEACHER, numbered([1]))
        assert found_in(store, [key_of(1), key_of(2)]) == [bits(record_of(1)), bits(record_of(2))]


def test_what_cannot_be_sealed_because_zarr_fails_stays_recent(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(BloscCodec, "_encode_sync", lambda *_: 1 / 0)
        with closing(open_store(tmp_path)) as store:
            store.put(TEACHER, numbered(NUMBERS, (0.5,)))
            with pytest.raises(StoreUnavailable, match=r"zarr cannot make a segment: .*; check that zarr"):
                store.seal()
    with closing(open_store(tmp_path)) as store:
        assert read(store) == RIGHT


def test_a_codec_that_writes_other_bytes_is_found_before_anybody_relies_on_them(tmp_path, monkeypatch):
    right = zarr.Array.__setitem__
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered(NUMBERS, (0.5,)))
        with monkeypatch.context() as broken, pytest.raises(StoreUnavailable, match="does not read back"):
            broken.setattr(zarr.Array, "__setitem__", lambda array, where, rows: right(array, where, rows * 0))
            store.seal()
        assert read(store) == RIGHT and not store.files.names("commits")


def test_the_writer_warns_of_a_damaged_block_once(copy, caplog):
    (damaged,) = copy.glob("segments/*-000001/values/c/0/0")
    flip(damaged, 30)
    with caplog.at_level(logging.WARNING), closing(open_store(copy)) as store:
        for _ in range(2):
            assert store.get(KEYS[:1]) == [None]
        assert store.counts().corrupt == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "counts as missing, and can be stored again" in warning and damaged.parts[-5] in warning
