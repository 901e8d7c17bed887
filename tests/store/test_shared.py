"""A store in object storage: many writers, one value a key, and what is read is what was acknowledged."""

import threading
from contextlib import closing

import obstore
import pytest
from shared_writers import further, writers
from stored_records import bits, found_in, key_of, record_of

from object_storage import BUCKET, Proxy
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store import bucket as bucket_module
from tvkd_shared.store import store as store_module

TEACHER = "teacher"


def put(store, numbers, *temperatures, variant=0):
    store.put(TEACHER, [(key_of(n), record_of(n, temperatures, variant)) for n in numbers])


def read(store, numbers, *temperatures):
    return found_in(store, [key_of(n) for n in numbers], temperatures)


def right(numbers, *temperatures, variant=0):
    return [bits(record_of(n, temperatures, variant)) for n in numbers]


def test_a_put_is_seen_by_readers_and_writers_that_were_open_before(place):
    with closing(open_store(place)) as one, closing(open_store(place)) as other, closing(StoreReader(place)) as reader:
        for numbers in (range(3), range(3, 200)):
            put(one, numbers)
            assert read(reader, numbers) == read(other, numbers) == read(one, numbers) == right(numbers)
    with closing(StoreReader(place)) as reader:
        assert read(reader, range(200)) == right(range(200))
        assert reader.counts().sequences == 200


def test_a_temperature_that_comes_later_is_added_and_changes_nothing(place):
    with closing(open_store(place)) as store, closing(StoreReader(place)) as reader:
        put(store, range(9), 0.5)
        put(store, range(9), 0.5, 2.0, variant=1)
        record = reader.get([key_of(4)], column_names([0.5, 2.0]))[0]
        later = record_of(4, (0.5, 2.0), 1).values[2.0].tobytes()
        assert bits(record) == right([4], 0.5)[0] | {"value_2": later}
        assert (reader.counts().sequences, reader.counts().tokens) == (9, sum(record_of(n).length for n in range(9)))


def test_of_two_values_of_a_key_the_first_is_everyones_for_good(place):
    with closing(open_store(place)) as one, closing(open_store(place)) as other, closing(StoreReader(place)) as open_:
        put(one, [1, 2])
        put(other, [2, 3], variant=1)  # without having seen that
        expected = right([1, 2]) + right([3], variant=1)
        for store in (one, other, open_):
            assert read(store, [1, 2, 3]) == expected
        assert other.counts().sequences == 3
    for kind in (open_store, StoreReader):
        with closing(kind(place)) as store:
            assert read(store, [1, 2, 3]) == expected


def test_threads_that_race_for_keys_agree(place):
    together = threading.Barrier(2)

    def race(store, variant):
        for n in range(0, 12, 3):
            together.wait(30)
            put(store, range(n, n + 3), variant=variant)

    with (
        closing(open_store(place)) as one,
        closing(open_store(place)) as other,
        closing(StoreReader(place)) as reader,
    ):
        threads = [threading.Thread(target=race, args=(store, own)) for own, store in enumerate((one, other))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        found = read(reader, range(12))
        assert found == read(one, range(12)) == read(other, range(12))
        either = zip(found, right(range(12)), right(range(12), variant=1), strict=True)
        assert all(record in tried for record, *tried in either)
        assert reader.counts().sequences == 12


@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_write_the_same_keys_lose_none_and_agree(place, count):
    tasks = [
        {"variant": own, "batches": [list(range(first, first + 6)) for first in range(3 * own, 3 * own + 10, 3)]}
        for own in range(count)
    ]
    asked = sorted({n for task in tasks for batch in task["batches"] for n in batch})
    with writers(place) as at_once:
        for task, ended in zip(tasks, at_once(*tasks), strict=True):
            assert ended["code"] == 0
            assert ended["acknowledged"] == [n for batch in task["batches"] for n in batch]
    with closing(StoreReader(place)) as reader, closing(open_store(place)) as store:
        found = read(reader, asked, 0.5)
        assert found == read(store, asked, 0.5)
        for number, record in zip(asked, found, strict=True):
            assert record in [bits(record_of(number, further(number), own)) for own in range(count)]
        assert reader.counts().sequences == store.counts().sequences == len(asked)


def test_an_opening_reads_the_commits_since_the_last_checkpoint_and_no_others(place, storage, monkeypatch):
    monkeypatch.setattr(store_module, "CHECKPOINT_EVERY", 4)
    with closing(open_store(place)) as store:
        for n in range(10):
            put(store, [n])
    with closing(Proxy(storage)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.storage.endpoint)
        with closing(StoreReader(place)) as reader:
            assert read(reader, range(10)) == right(range(10))
        commits = sorted(seen.path for seen in proxy.seen if seen.path.startswith("commits/"))
        assert commits == ["commits/000000000009.json", "commits/000000000010.json"]


def test_the_index_that_a_writer_leaves_spares_the_next_opening_the_keys(place, storage, index_folder, monkeypatch):
    with closing(Proxy(storage)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.storage.endpoint)
        with closing(open_store(place)) as store:
            put(store, range(9))
        proxy.seen.clear()
        StoreReader(place).close()
        assert not [seen for seen in proxy.seen if "/keys/" in seen.path]
    [index] = index_folder.iterdir()
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
    with closing(StoreReader(place)) as reader:
        assert read(reader, range(9)) == right(range(9))


def test_a_put_of_one_temperature_is_eight_requests_and_what_is_there_costs_none(place, storage, monkeypatch):
    with closing(Proxy(storage)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.storage.endpoint)
        with closing(open_store(place)) as store:
            proxy.seen.clear()
            put(store, range(50))
            assert [seen.method for seen in proxy.seen].count("PUT") == 8
            assert len(proxy.seen) == 8
            assert [seen.path for seen in proxy.seen if seen.conditional] == ["commits/000000000001.json"]
            put(store, range(50), variant=1)
            assert read(store, range(50)) == right(range(50))
            assert len(proxy.seen) == 8


KINDS = ["store.json", "commits/", "checkpoints/", "/keys/c", "/offsets/c", "/values/c", "/zarr.json", "teachers/"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_of_an_object_is_never_served_and_can_be_stored_again(place, storage, index_folder, kind):
    with closing(open_store(place)) as store:
        put(store, range(4), 0.5)
        store.write_checkpoint()
        put(store, range(4, 8), 0.5)
        prefix = place.removeprefix(f"s3://{BUCKET}/")
        obstore.put(storage.bucket(), f"{prefix}/teachers/t.json", b"{}")
    everything, bucket = right(range(8), 0.5), storage.bucket()
    names = [meta["path"] for chunk in obstore.list(bucket, prefix) for meta in chunk if kind in meta["path"]]
    assert names
    for name in names[:4]:
        content = bytearray(obstore.get(bucket, name).bytes())
        content[len(content) // 3] ^= 4
        obstore.put(bucket, name, bytes(content))
        for index in index_folder.iterdir():
            index.unlink()
        for opened in (StoreReader, open_store):
            with closing(opened(place)) as store:
                for found, whole in zip(read(store, range(8), 0.5), everything, strict=True):
                    assert found is None or found.items() <= whole.items()
                assert store.teachers() == {}
        with closing(open_store(place)) as store:
            put(store, range(8), 0.5)
            assert read(store, range(8), 0.5) == everything
            assert store.counts().sequences == 8
    with closing(StoreReader(place)) as reader:
        assert read(reader, range(8), 0.5) == everything


def test_opening_makes_one_client_and_a_miss_costs_one_listing_at_most(place, storage, monkeypatch):
    clients = []
    from_url = bucket_module.from_url
    monkeypatch.setattr(bucket_module, "from_url", lambda *a, **o: (clients.append(1), from_url(*a, **o))[1])
    with closing(Proxy(storage)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.storage.endpoint)
        with closing(open_store(place)) as store:
            assert len(clients) == 1
            put(store, range(5))
            for reader in (store, StoreReader(place)):
                proxy.seen.clear()
                assert read_records(reader, [*range(5), 77])[-1] is None
                assert [seen.path for seen in proxy.seen].count(BUCKET) == 1
        assert len(clients) == 2


def read_records(reader, numbers):
    return reader.get([key_of(n) for n in numbers])
