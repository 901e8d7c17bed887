"""The format is what docs/store-format.md says, and others can read it."""

import json
import re
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from stored_records import TEACHER, key_of, numbered, record_of

from tvkd_shared.dispatch import exit_code
from tvkd_shared.errors import BY_CODE, NoStore, StoreUnavailable
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, document, open_store

PAGE = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()
ZARR, XARRAY, COMMITS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STATES = sum(record_of(n).length + 1 for n in range(20))


@pytest.fixture
def path(tmp_path):
    with closing(open_store(tmp_path)) as store:
        store.put(TEACHER, numbered(range(20), (0.5,)))
    return tmp_path


def segments(path):
    """The folder of each segment, base blocks first."""
    with closing(StoreReader(path)) as reader:
        entries = sorted(reader.catalog.segments.values(), key=lambda entry: entry.columns)
        return [path / "segments" / entry.name for entry in entries]


@pytest.mark.parametrize("example", [ZARR, XARRAY], ids=["zarr", "xarray"])
def test_the_documented_examples_read_a_segment(path, example):
    names = {"folder": segments(path)[0], "key": key_of(7)}
    exec(example, names)
    expected = record_of(7, (0.5,))
    assert {name: column.tobytes() for name, column in names["columns"].items()} == {
        name: expected.numbers[:, index].tobytes() for index, name in enumerate(expected.columns)
    }


def test_the_documented_example_finds_every_value_of_a_key_by_the_commits(tmp_path):
    with closing(open_store(tmp_path)) as store:
        for numbers, further in (([1, 2], ()), ([1, 2], (0.5,)), ([2], (0.5, 3.25))):
            store.put(TEACHER, numbered(numbers, further))
            store.seal()
            store.write_checkpoint()
        (found,) = store.get([key_of(2)], column_names([0.5, 3.25]))
    names = {"store": tmp_path, "key": key_of(2)}
    exec(COMMITS, names)
    assert {name: column.tobytes() for name, column in names["columns"].items()} == {
        name: found.numbers[:, index].tobytes() for index, name in enumerate(found.columns)
    }


def test_all_that_a_reader_serves_is_what_zarr_and_xarray_read(path):
    with closing(StoreReader(path)) as reader:
        records = reader.get([key_of(n) for n in range(20)], column_names([0.5]))
    for folder in segments(path):
        group, dataset = (
            zarr.open_group(folder, mode="r"),
            xarray.open_dataset(folder, engine="zarr", consolidated=False),
        )
        keys = [row.tobytes() for row in group["keys"][:]]
        order = [keys.index(key_of(n)) for n in range(20)]
        for values in (group["values"][:], dataset["values"].values):
            rows = np.split(values, group["offsets"][1:-1])
            assert [rows[row].tobytes() for row in order] == [record.numbers.tobytes() for record in records]
        for name in ("keys", "offsets"):
            assert dataset[name].values.tobytes() == group[name][:].tobytes()


def test_a_segment_says_what_it_holds(path):
    common = {
        "format": "tvkd-store", "version": 3, "teacher": TEACHER, "records": 20, "states": STATES, "mantissa_bits": 23,
    }  # fmt: skip
    for folder in segments(path):
        said = dict(zarr.open_group(folder, mode="r").attrs)
        crc = said.pop("crc32")
        assert said == common | {"columns": ["value_1", "action_logit", "entropy", "value_0.5"]}
        assert crc == zlib.crc32(json.dumps(said, sort_keys=True, indent=1).encode())


def test_a_commit_says_what_came(path):
    (commit,) = (path / "commits").iterdir()
    said = document.from_bytes(commit.read_bytes(), commit.name)
    assert (commit.name, said["format"], said["version"], said["remove"]) == ("000000000001.json", "tvkd-store", 3, {})
    for entry, folder in zip(sorted(said["add"], key=lambda entry: entry["columns"]), segments(path), strict=True):
        files = [file for file in folder.rglob("*") if file.is_file()]
        metadata = [folder / "zarr.json", *(folder / name / "zarr.json" for name in ("values", "offsets", "keys"))]
        assert entry["bytes"] == sum(file.stat().st_size for file in files)
        assert entry["metadata_crc32"] == zlib.crc32(b"".join(file.read_bytes() for file in metadata))
        assert (entry["name"], entry["order"], entry["records"]) == (folder.name, 1, 20)
        assert (entry["sequences"], entry["tokens"]) == (20, STATES - 20)


def test_each_array_is_one_shard_that_ends_in_a_checksum(path):
    for folder in segments(path):
        for name in ("values", "offsets", "keys"):
            array = zarr.open_array(folder / name, mode="r")
            assert array.chunks[0] == 4096
            assert len([file for file in (folder / name / "c").rglob("*") if file.is_file()]) == 1
            assert type(array.compressors[-1]).__name__ == "Crc32cCodec"


@pytest.mark.parametrize("version", [1, 2, 4])
@pytest.mark.parametrize("opened", [open_store, StoreReader])
def test_another_version_is_refused(path, opened, version):
    said = {"format": "tvkd-store", "version": version, "mantissa_bits": 23, "more": []}
    (path / "store.json").write_bytes(document.to_bytes(said))
    with pytest.raises(StoreUnavailable, match=rf"has format version {version}; this program reads version 3: use .*$"):
        opened(path)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("opened", [open_store, StoreReader])
def test_a_store_of_version_1_is_refused_and_left_as_it_is(tmp_path, opened, sealed):
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as log:
        log.execute("PRAGMA user_version = 1")
        log.execute("CREATE TABLE pending (key BLOB)")
    (tmp_path / "segments").mkdir()
    if sealed:
        zarr.create_group(tmp_path / "segments" / "000000000001", attributes={"format": "tvkd-store", "version": 1})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreUnavailable, match="has format version 1; this program reads version 3"):
        opened(tmp_path)
    assert set(tmp_path.rglob("*")) - set(before) == set()


def test_a_reader_makes_no_store(tmp_path):
    with pytest.raises(NoStore, match="no store at"):
        StoreReader(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_no_store_is_a_users_mistake_and_travels_as_store_unavailable(path):
    assert exit_code("tvkd", lambda: StoreReader(path / "nothing")) == 2
    assert NoStore.code == "store-unavailable"
    assert BY_CODE["store-unavailable"] is StoreUnavailable


def test_a_store_can_be_moved(path, tmp_path_factory):
    moved = shutil.move(path, tmp_path_factory.mktemp("elsewhere") / "values")
    with closing(StoreReader(moved)) as reader:
        assert None not in reader.get([key_of(n) for n in range(20)])
