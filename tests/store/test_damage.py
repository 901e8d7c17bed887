"""Damaged bytes are a miss, never a value and never an exception; and a miss can be stored again."""

import shutil
import sqlite3
from contextlib import closing

import pytest
import zarr
from stored_records import bits, flip, key_of, record_of
from zarr.codecs import BloscCodec

from tvkd_server.store import Store
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader

NUMBERS = range(3)
KEYS = [key_of(n) for n in NUMBERS]
RECORDS = [record_of(n, (0.5,)) for n in NUMBERS]
RIGHT = [bits(record) for record in RECORDS]
EVERY = 23  # of the bytes of a small segment, one in so many is flipped


def fill(path, *, sealed):
    """A store as a killed server leaves it; its blocks sealed, or in the database file, or (False, None) in its WAL."""
    with closing(Store(path / "live")) as store:
        store.put(list(zip(KEYS, RECORDS, strict=True)))
        if sealed:
            store.seal()
        if sealed is not None:
            with closing(sqlite3.connect(path / "live" / "log.sqlite")) as log:
                log.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return shutil.copytree(path / "live", path / "killed", ignore=shutil.ignore_patterns("*-shm"))


def is_right_or_missing(found):
    """Each number that came back is the right one; a record or a further temperature may be missing."""
    return all(
        record is None or bits(record).items() <= right.items() for record, right in zip(found, RIGHT, strict=True)
    )


def flips(path, every):
    """(file, position) of one byte in `every` of each file of the segments."""
    files = sorted(file for file in (path / "segments").rglob("*") if file.is_file())
    return [(file, at) for n, file in enumerate(files) for at in range(n % every, file.stat().st_size, every)]


def test_a_flipped_byte_of_a_segment_is_never_served(tmp_path):
    path = fill(tmp_path, sealed=True)
    missed = 0
    for file, position in flips(path, EVERY):
        flip(file, position)
        with closing(StoreReader(path)) as reader:
            found = reader.get(KEYS, [0.5])
            assert is_right_or_missing(found), (file, position)
            missed += found[0] is None or 0.5 not in found[0].values
            assert (reader.counts().corrupt > 0) == ([bits(record) for record in found] != RIGHT)
        flip(file, position)
    assert missed > 50


def test_what_a_flipped_byte_took_can_be_stored_again(tmp_path):
    path = fill(tmp_path, sealed=True)
    for n, (file, position) in enumerate(flips(path, 17 * EVERY)):
        copy = shutil.copytree(path, tmp_path / str(n))
        flip(copy / file.relative_to(path), position)
        with closing(Store(copy)) as store:
            assert is_right_or_missing(store.get(KEYS, [0.5])), (file, position)
            store.put(list(zip(KEYS, RECORDS, strict=True)))
            assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT, (file, position)
            assert store.counts().sequences == len(KEYS)
        # The later segment counts, also when the index is made anew.
        (copy / "log.sqlite").unlink()
        with closing(Store(copy)) as store:
            assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT, (file, position)


def test_a_flipped_byte_is_never_served_by_an_index_made_from_the_damaged_segments(tmp_path):
    path = fill(tmp_path, sealed=True)
    for n, (file, position) in enumerate(flips(path, 17 * EVERY)):
        copy = shutil.copytree(path, tmp_path / str(n), ignore=shutil.ignore_patterns("log.sqlite*"))
        flip(copy / file.relative_to(path), position)
        with closing(Store(copy)) as store:
            assert is_right_or_missing(store.get(KEYS, [0.5])), (file, position)


def test_another_temperature_written_into_a_segment_is_not_believed(tmp_path):
    path = fill(tmp_path, sealed=True)
    for metadata in path.glob("segments/*/zarr.json"):
        metadata.write_text(metadata.read_text().replace('"temperature": 0.5', '"temperature": 0.7'))
    (path / "log.sqlite").unlink()
    with closing(Store(path)) as store:
        assert [list(record.values) for record in store.get(KEYS, [0.5, 0.7])] == [[1.0]] * 3


def test_an_index_row_that_points_at_another_keys_block_is_a_miss(tmp_path):
    same_length = [0, 40]
    with closing(Store(tmp_path)) as store:
        store.put([(key_of(n), record_of(n)) for n in same_length])
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as log, log:
        log.execute("UPDATE sealed SET row = 1 - row")
    with closing(StoreReader(tmp_path)) as reader:
        assert reader.get([key_of(n) for n in same_length]) == [None, None]
        assert reader.counts().corrupt == 2


@pytest.mark.parametrize("missing", ["values/c/0/0", "offsets/c/0", "keys/c/0/0", "values/zarr.json", "zarr.json", ""])
def test_a_missing_file_is_a_miss_and_not_zarrs_fill_value(tmp_path, missing):
    path = fill(tmp_path, sealed=True)
    for segment, found in (("000000000002", [[1.0]] * 3), ("000000000001", [None] * 3)):
        file = path / "segments" / segment / missing
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        with closing(StoreReader(path)) as reader:
            assert [record and list(record.values) for record in reader.get(KEYS, [0.5])] == found


@pytest.mark.parametrize("where", ["log.sqlite", "log.sqlite-wal"])
def test_a_flipped_byte_of_the_log_is_never_served(tmp_path, where):
    path = fill(tmp_path, sealed=False if where == "log.sqlite" else None)
    log = path / where
    payload = log.read_bytes().find(RECORDS[0].values[1.0].tobytes()[:4])
    assert payload > 0
    for position in sorted({*range(payload - 40, payload + 40, 3), *range(0, log.stat().st_size, 257)}):
        flip(log, position)
        try:
            with closing(StoreReader(path)) as reader:
                assert is_right_or_missing(reader.get(KEYS, [0.5])), position
        except StoreUnavailable as error:
            assert "malformed" in str(error) or "no store" in str(error) or "version" in str(error), position
        (path / "log.sqlite-shm").unlink(missing_ok=True)
        flip(log, position)


def test_a_pending_block_filed_under_another_temperature_is_not_served(tmp_path):
    path = fill(tmp_path, sealed=False)
    with closing(sqlite3.connect(path / "log.sqlite")) as log, log:
        log.execute("UPDATE pending SET temperature = 0.7 WHERE temperature = 0.5")
    with closing(StoreReader(path)) as reader:
        assert [list(record.values) for record in reader.get(KEYS, [0.5, 0.7])] == [[1.0]] * 3


def test_a_damaged_pending_block_is_not_sealed_and_can_be_stored_again(tmp_path):
    with closing(Store(tmp_path)) as store:
        store.put(list(zip(KEYS, RECORDS, strict=True)))
        with closing(sqlite3.connect(tmp_path / "log.sqlite")) as log, log:
            log.execute("UPDATE pending SET payload = zeroblob(length(payload)) WHERE key = ?", (KEYS[1],))
        store.seal()
        assert [bits(record) for record in store.get(KEYS, [0.5])] == [RIGHT[0], None, RIGHT[2]]
        store.put([(KEYS[1], RECORDS[1])])
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT


@pytest.mark.parametrize(
    "damage", ["missing", "missing but for its WAL", "no database", "no table", "malformed in use"]
)
def test_a_log_that_is_missing_or_malformed_is_made_anew_from_the_segments(tmp_path, damage):
    path = fill(tmp_path, sealed=True)
    log = path / "log.sqlite"
    if damage == "missing":
        log.unlink()
    elif damage == "missing but for its WAL":
        stale = fill(tmp_path / "stale", sealed=None)
        shutil.copy(stale / "log.sqlite-wal", path)
        log.unlink()
    elif damage == "no database":
        log.write_bytes(b"no database" + log.read_bytes())
    elif damage == "no table":
        with closing(sqlite3.connect(log)) as connection:
            connection.execute("DROP TABLE sealed")
    else:
        with closing(Store(path)) as store:
            with closing(sqlite3.connect(log)) as connection:
                connection.execute("DROP TABLE sealed")
            assert store.get(KEYS) == [None] * 3
            with pytest.raises(StoreUnavailable, match="malformed"):
                store.put([(key_of(9), record_of(9))])
    with closing(Store(path)) as store:
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT
        assert (store.counts().sequences, store.counts().tokens) == (3, sum(record.length for record in RECORDS))
    assert not (path / "rebuild").exists()


def test_what_is_pending_in_a_malformed_log_is_saved(tmp_path):
    path = fill(tmp_path, sealed=False)
    with closing(sqlite3.connect(path / "log.sqlite")) as log:
        log.execute("DROP TABLE totals")
    with closing(Store(path)) as store:
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT
        assert store.counts().sequences == 3


@pytest.mark.parametrize("owner, name", [(zarr, "open_array"), (BloscCodec, "_decode_sync")])
@pytest.mark.parametrize("error", [ValueError, LookupError, RuntimeError, TypeError])
def test_a_fault_of_zarr_is_one_clear_line_and_forgets_nothing(tmp_path, monkeypatch, owner, name, error):
    def fails(*arguments, **options):
        raise error("codec not available\nand more")

    path = fill(tmp_path, sealed=True)
    with monkeypatch.context() as broken, closing(Store(path)) as store:
        broken.setattr(owner, name, fails)
        with pytest.raises(StoreUnavailable, match=r"zarr cannot use .* codec not available and more; check"):
            store.get(KEYS, [0.5])
        assert store.counts().corrupt == 0
    with closing(Store(path)) as store:
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT


def test_a_store_whose_index_is_lost_is_not_opened_while_zarr_fails(tmp_path, monkeypatch):
    path = fill(tmp_path, sealed=True)
    (path / "log.sqlite").unlink()
    with monkeypatch.context() as broken:
        broken.setattr(zarr, "open_array", lambda *_, **__: 1 / 0)
        with pytest.raises(StoreUnavailable, match="zarr cannot use"):
            Store(path)
    with closing(Store(path)) as store:
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT


def test_what_cannot_be_sealed_because_zarr_fails_stays_in_the_log(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(BloscCodec, "_encode_sync", lambda *_: 1 / 0)
        with closing(Store(tmp_path)) as store:
            store.put(list(zip(KEYS, RECORDS, strict=True)))
            with pytest.raises(StoreUnavailable, match="zarr cannot use"):
                store.seal()
    with closing(Store(tmp_path)) as store:
        assert [bits(record) for record in store.get(KEYS, [0.5])] == RIGHT


def test_the_writer_warns_of_a_damaged_block_once_with_its_key_and_segment(tmp_path, caplog):
    path = fill(tmp_path, sealed=True)
    flip(path / "segments" / "000000000001" / "values" / "c" / "0" / "0", 30)
    with closing(Store(path)) as store:
        for _ in range(2):
            assert store.get(KEYS[:1]) == [None]
        assert store.counts().corrupt == 1
        with closing(sqlite3.connect(path / "log.sqlite")) as log, log:
            log.execute("UPDATE sealed SET row = 'x' WHERE key = ?", (KEYS[1],))
        assert store.get(KEYS[1:2]) == [None]
        store.put([(key_of(9), record_of(9))])
        with closing(sqlite3.connect(path / "log.sqlite")) as log, log:
            log.execute("UPDATE pending SET crc = crc + 1")
        store.seal()
    warnings = [record.getMessage() for record in caplog.records if record.name == "tvkd_server.store.store"]
    assert len(warnings) == 3
    for warning, key, where in zip(
        warnings, [*KEYS[:2], key_of(9)], ["segment 1", "segment 1", "the log"], strict=True
    ):
        assert warning.startswith(f"key {key.hex()}, temperature 1.0 in {where} is forgotten")
    assert "does not match its checksum" in warnings[0]
