"""Damaged bytes are a miss, never a value and never an exception; and a miss can be stored again."""

import logging
import shutil
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zarr
from stored_records import MEMORY, TEACHER, as_killed, bits, flip, key_of, numbered, record_of
from zarr.codecs import BloscCodec

from tvkd_server.store import LocalStore
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader
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
    """A store as a killed server leaves it, with every kind of file: 0 … 3 are sealed, 4 and 5 in the log."""
    with TemporaryDirectory(dir=MEMORY) as folder, closing(LocalStore(Path(folder, "live"))) as store:
        store.add_teacher(INFO)
        for first in (0, 1, 2):
            store.put(TEACHER, numbered([first] if first < 2 else [2, 3], (0.5,)))
            store.seal()
            if first < 2:
                store.checkpoint()
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
    return [bits(record) for record in source.get(KEYS, [0.5])]


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
    with closing(LocalStore(path)) as store:
        assert is_right_or_missing(read(store))
        store.put(TEACHER, numbered(NUMBERS, (0.5,)))
        store.add_teacher(INFO)
        assert read(store) == RIGHT
    for _ in range(2):
        with closing(StoreReader(path)) as reader:
            assert read(reader) == RIGHT and len(reader.teachers()) == 1
        (path / "index").unlink(missing_ok=True)
    return True


def test_there_is_every_kind_of_file(path):
    assert {file.relative_to(path).parts[0] for file in files_of(path)} == {
        "store.json", "commits", "checkpoints", "segments", "teachers", "log", "index", "lock",
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


def test_a_flipped_byte_of_the_log_is_never_served(path):
    missed = 0
    for file, position in flips(path, 11, "log"):
        flip(file, position)
        found, corrupt = read_damaged(path)
        assert found[:4] == RIGHT[:4] and (found[4] == RIGHT[4] or found[5] == RIGHT[5]), position
        assert (corrupt > 0) == (found[5] != RIGHT[5] or found[4] is None), "the last record may be half written"
        missed += found != RIGHT
        flip(file, position)
    assert missed > 50


@pytest.mark.parametrize("kind", ["store.json", "commits", "checkpoints", "index"])
def test_a_flipped_byte_of_what_says_where_values_are_costs_none(path, kind):
    unread = ["index", "commits/000000000002.json", "checkpoints/000000000001.json"]  # for a checkpoint holds them
    for file, position in flips(path, 13, kind):
        flip(file, position)
        found, corrupt = read_damaged(path)
        assert found == RIGHT, (file, position)
        assert (corrupt > 0) == (str(file.relative_to(path)) not in unread), (file, position)
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
        path / "log",
    ]:
        with TemporaryDirectory(dir=MEMORY) as folder:
            copy = shutil.copytree(path, Path(folder, "copy"))
            (shutil.rmtree if lost.is_dir() else Path.unlink)(copy / lost.relative_to(path))
            found, _ = read_damaged(copy)
            assert (found == RIGHT) or {"segments", "log", "commits"} & set(lost.relative_to(path).parts), lost
            assert mends(copy), lost


def test_the_segments_of_a_damaged_commit_are_found_by_their_own_metadata(copy):
    commits = sorted((copy / "commits").iterdir())
    for commit in commits:
        flip(commit, 100)
    shutil.rmtree(copy / "checkpoints")
    assert read_damaged(copy)[0] == RIGHT
    with closing(LocalStore(copy)) as store:
        assert read(store) == RIGHT
    assert read_damaged(copy) == (RIGHT, 0), "the writer committed to them again"


def test_segment_metadata_that_were_changed_are_not_believed(copy):
    for metadata in copy.glob("segments/*/zarr.json"):
        metadata.write_text(metadata.read_text().replace('"temperature": 0.5', '"temperature": 0.7'))
    for commit in [*(copy / "commits").iterdir(), *(copy / "checkpoints").iterdir()]:
        flip(commit, 100)
    with closing(StoreReader(copy)) as reader:
        found = reader.get(KEYS[:4], [0.5, 0.7])
    assert [sorted(record.values) for record in found] == [[1.0]] * 4


def test_the_precision_is_not_forgotten_when_store_json_is_damaged(tmp_path):
    with closing(LocalStore(tmp_path, mantissa_bits=10)) as store:
        store.put(TEACHER, numbered([1]))
    flip(tmp_path / "store.json", 20)
    for opened in (StoreReader, LocalStore, StoreReader):
        with closing(opened(tmp_path)) as store:
            assert store.format.mantissa_bits == 10


def test_a_torn_end_of_the_log_costs_only_what_was_never_acknowledged(copy):
    (log,) = (copy / "log").iterdir()
    log.write_bytes(log.read_bytes() + log.read_bytes()[:70])
    assert read_damaged(copy) == (RIGHT, 0)
    assert mends(copy)


def test_what_cannot_be_sealed_because_zarr_fails_stays_in_the_log(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(BloscCodec, "_encode_sync", lambda *_: 1 / 0)
        with closing(LocalStore(tmp_path)) as store:
            store.put(TEACHER, numbered(NUMBERS, (0.5,)))
            with pytest.raises(StoreUnavailable, match=r"zarr cannot make a segment: .*; check that zarr"):
                store.seal()
    with closing(LocalStore(tmp_path)) as store:
        assert read(store) == RIGHT


def test_a_codec_that_writes_other_bytes_is_found_before_anybody_relies_on_them(tmp_path, monkeypatch):
    right = zarr.Array.__setitem__
    with closing(LocalStore(tmp_path)) as store:
        store.put(TEACHER, numbered(NUMBERS, (0.5,)))
        with monkeypatch.context() as broken, pytest.raises(StoreUnavailable, match="does not read back"):
            broken.setattr(zarr.Array, "__setitem__", lambda array, where, rows: right(array, where, rows * 0))
            store.seal()
        assert read(store) == RIGHT and not store.files.names("commits")


def test_the_writer_warns_of_a_damaged_block_once(copy, caplog):
    (damaged,) = copy.glob("segments/*-000001/values/c/0/0")
    flip(damaged, 30)
    with caplog.at_level(logging.WARNING), closing(LocalStore(copy)) as store:
        for _ in range(2):
            assert store.get(KEYS[:1]) == [None]
        assert store.counts().corrupt == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "counts as missing, and can be stored again" in warning and damaged.parts[-5] in warning


def test_the_writer_warns_of_a_log_that_lost_acknowledged_records(copy, caplog):
    (log,) = (copy / "log").iterdir()
    flip(log, 50)
    with caplog.at_level(logging.WARNING), closing(LocalStore(copy)) as store:
        assert store.corrupt == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert log.name in warning and "bytes are no record" in warning
