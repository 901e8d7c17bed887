"""The format is what docs/store-format.md says, and others can read it."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr
from stored_records import key_of, record_of

from tvkd_server.store import Store
from tvkd_shared.errors import BY_CODE, NoStore, StoreInUse, StoreUnavailable
from tvkd_shared.settings import exit_code
from tvkd_shared.store import StoreReader

DOCUMENT = Path(__file__).parents[2] / "docs" / "store-format.md"


@pytest.fixture
def path(tmp_path):
    with closing(Store(tmp_path)) as store:
        store.put([(key_of(n), record_of(n, (0.5,))) for n in range(20)])
    return tmp_path


def test_the_documented_example_reads_a_segment_with_plain_zarr(path):
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {"store": path, "key": key_of(7)}
    exec(example, names)
    expected = record_of(7)
    assert names["value_1"].tobytes() == expected.values[1.0].tobytes()
    assert names["action_logit"][:-1].tobytes() == expected.action_logits.tobytes()
    assert np.isnan(names["action_logit"][-1])
    assert names["entropy"].tobytes() == expected.entropies.tobytes()


def test_a_segment_says_what_it_holds(path):
    said = [dict(zarr.open_group(segment, mode="r").attrs) for segment in sorted((path / "segments").iterdir())]
    states = sum(record_of(n).length + 1 for n in range(20))
    for segment in said:
        segment.pop("metadata_crc32")
    common = {"format": "tvkd-store", "version": 1, "records": 20, "states": states}
    assert said == [
        common | {"temperature": None, "columns": ["value_1", "action_logit", "entropy"]},
        common | {"temperature": 0.5, "columns": ["value"]},
    ]


def test_each_array_is_one_shard_that_ends_in_a_checksum(path):
    for segment in (path / "segments").iterdir():
        for name in ("values", "offsets", "keys"):
            array = zarr.open_array(segment / name, mode="r")
            assert array.chunks[0] == 4096
            assert len([file for file in (segment / name / "c").rglob("*") if file.is_file()]) == 1
            assert type(array.compressors[-1]).__name__ == "Crc32cCodec"


@pytest.mark.parametrize("opened", [Store, StoreReader])
def test_another_format_version_is_refused(path, opened):
    with closing(sqlite3.connect(path / "log.sqlite")) as log:
        log.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreUnavailable, match="format version 2; this program reads version 1"):
        opened(path)


def test_a_reader_makes_no_store(tmp_path):
    with pytest.raises(NoStore, match="no store at"):
        StoreReader(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_no_store_and_a_store_in_use_are_a_users_mistake_and_travel_as_store_unavailable(path):
    with closing(Store(path)):
        assert exit_code("tvkd", lambda: Store(path)) == 2
    assert exit_code("tvkd", lambda: StoreReader(path / "nothing")) == 2
    assert NoStore.code == StoreInUse.code == "store-unavailable"
    assert BY_CODE["store-unavailable"] is StoreUnavailable
