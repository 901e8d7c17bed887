"""A service that fails: a put that returned is there once, one that raised says so in one line, and a later one works.

The faults are a proxy's of our own; what is behind it is a real S3 server.
"""

import time
from contextlib import closing

import obstore
import pytest
from stored_records import bits, found_in, key_of, record_of

from object_storage import BUCKET, Proxy, Seen
from tvkd_shared.errors import StoreUnavailable
from tvkd_shared.store import StoreReader, bucket, open_store

PASSING = ["500", "503", "done-500", "drop", "lose", "stall", "late"]


@pytest.fixture
def proxy(storage, place, monkeypatch):
    """Between the store and the server; no request waits for long."""
    monkeypatch.setattr(bucket, "REQUEST_SECONDS", 1.0)
    with closing(Proxy(storage)) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.storage.endpoint)
        yield between


@pytest.fixture
def impatient(monkeypatch):
    """Nothing is tried again for long."""
    monkeypatch.setattr(bucket, "RETRY_SECONDS", 1.0)


def put(store, numbers, variant=0):
    store.put("teacher", [(key_of(n), record_of(n, (), variant)) for n in numbers])


def read(store, numbers):
    return found_in(store, [key_of(n) for n in numbers])


def right(numbers, variant=0):
    return [bits(record_of(n, (), variant)) for n in numbers]


def commits(storage, place):
    found = obstore.list(storage.bucket(), f"{place.removeprefix(f's3://{BUCKET}/')}/commits").collect()
    return len(found)


def a_data_put(seen: Seen) -> bool:
    return seen.method == "PUT" and seen.path.startswith("segments/")


def the_commit(seen: Seen) -> bool:
    return seen.conditional


def any_request(seen: Seen) -> bool:
    return True


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("wanted", [a_data_put, the_commit])
def test_a_fault_that_passes_publishes_a_put_once(proxy, storage, place, fault, wanted):
    with closing(open_store(place)) as store, closing(open_store(place)) as other:
        proxy.fail(fault, wanted, times=1 if fault in ("stall", "late") else 2)
        put(store, range(5))
        assert commits(storage, place) == 1
        put(other, range(5), variant=1)
        for writer in (store, other):
            assert read(writer, range(5)) == right(range(5))
            assert writer.counts().sequences == 5


def test_a_commit_that_the_service_cannot_decide_on_is_tried_again(proxy, storage, place):
    with closing(open_store(place)) as store:
        proxy.fail("409", the_commit)  # S3's ConditionalRequestConflict: another's is under way, and may yet fail
        put(store, range(5))
        assert (commits(storage, place), read(store, range(5))) == (1, right(range(5)))


def test_a_lost_answer_is_told_from_anothers_commit(proxy, storage, place):
    with closing(open_store(place)) as store, closing(open_store(place)) as other:
        between = iter([lambda: put(other, [1, 2], variant=1)])

        def another_comes_first(seen: Seen) -> str | None:
            if seen.conditional and (act := next(between, None)):
                act()
                return "done-500"
            return None

        proxy.fault = another_comes_first
        put(store, [2, 3])
        assert commits(storage, place) == 2
        assert read(store, [1, 2, 3]) == read(other, [1, 2, 3]) == right([1, 2], variant=1) + right([3])
        assert store.counts().sequences == 3


@pytest.mark.parametrize("fault", ["500", "drop", "stall", "cut"])
def test_reading_and_opening_outlast_a_fault_of_any_request(proxy, place, index_folder, fault):
    with closing(open_store(place)) as store:
        put(store, range(5))
    for request in range(7) if fault != "stall" else (1, 3, 6):
        for index in index_folder.iterdir():
            index.unlink()
        passed = iter([None] * request + [fault])
        proxy.fault = lambda seen, passed=passed: next(passed, None)
        with closing(StoreReader(place)) as reader:
            assert read(reader, range(5)) == right(range(5))
            assert reader.counts().corrupt == 0


@pytest.mark.parametrize("fault", ["503", "drop", "lose"])
@pytest.mark.parametrize("wanted", [any_request, the_commit])
def test_a_service_that_stays_down_is_one_line_and_loses_nothing_acknowledged(proxy, place, impatient, fault, wanted):
    with closing(open_store(place)) as store:
        put(store, range(5))
        proxy.fail(fault, wanted, times=10_000)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as raised:
            put(store, range(3, 9))
        assert time.monotonic() - began < 6
        assert str(raised.value).startswith(f"the store {place} cannot be ") and "\n" not in str(raised.value)
        proxy.heal()
        put(store, range(3, 9), variant=1)
        with closing(StoreReader(place)) as reader:
            found = read(reader, range(9))
            # What arrived with its answer lost was published: then it is the first.
            assert found[:5] == right(range(5)) and found[5:] in (right(range(5, 9)), right(range(5, 9), variant=1))
            assert found == read(store, range(9))
            assert reader.counts().sequences == store.counts().sequences == 9


def test_a_reader_that_could_not_read_a_new_segment_reads_it_once_the_service_answers(proxy, place, impatient):
    with closing(open_store(place)) as store, closing(StoreReader(place)) as reader:
        put(store, range(5))
        proxy.fail("503", lambda seen: "/keys/" in seen.path, times=10_000)
        with pytest.raises(StoreUnavailable, match="cannot be read"):
            read(reader, range(5))
        proxy.heal()
        assert read(reader, range(5)) == right(range(5))


def test_a_service_that_is_down_is_no_damage_and_no_miss(proxy, place, impatient):
    with closing(open_store(place)) as store:
        put(store, range(5))
    with closing(StoreReader(place)) as reader:
        proxy.fail("503", any_request, times=10_000)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            read(reader, range(5))
        assert time.monotonic() - began < 3  # not as often as there are keys
        proxy.heal()
        assert read(reader, range(5)) == right(range(5))
        assert reader.counts().corrupt == 0
