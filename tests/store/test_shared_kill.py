"""kill -9 of writers of a shared store, at every request and at any moment: what was acknowledged is there for good."""

import itertools
import random
import signal
from contextlib import closing

import pytest
from shared_writers import further, writers
from stored_records import bits, found_in, key_of, record_of

from tvkd_shared.store import StoreReader, open_store

REQUESTS = [*(("opening", n) for n in range(1, 9)), *(("putting", n) for n in range(1, 20))]
"""All of an opening, and of a put of two segments, up to the first of the next."""


class Witness:
    """What may be read of a store by numbers: what it says once of a number, it says ever after."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.said: dict[int, object] = {}
        self.acknowledged: set[int] = set()
        self.variants: dict[int, set[int]] = {}
        self.open: StoreReader | None = None

    def tried(self, task: dict, ended: dict) -> None:
        self.acknowledged |= set(ended["acknowledged"])
        for number in itertools.chain(*task["batches"]):
            self.variants.setdefault(number, set()).add(task["variant"])

    def check(self, opened=StoreReader) -> None:
        """By a reader that was open before, and by one that opens now."""
        numbers = sorted(self.variants)
        with closing(opened(self.place)) as store:
            self.open = self.open or StoreReader(self.place)
            found = found_in(store, [key_of(n) for n in numbers], [0.5])
            counts = store.counts()
        for number, record, seen in zip(numbers, found, found_in(self.open, map(key_of, numbers), [0.5]), strict=True):
            assert record == seen
            if record is None:
                assert number not in self.acknowledged and number not in self.said
                continue
            whole = [bits(record_of(number, further(number), variant)) for variant in self.variants[number]]
            assert record in whole
            assert self.said.setdefault(number, record) == record
        assert (counts.sequences, counts.corrupt) == (len(self.said), 0)


@pytest.mark.crash
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_killed_at_any_request_loses_nothing_acknowledged_and_tears_nothing(place, when):
    witness, variant = Witness(place), itertools.count()
    with writers(place) as at_once:
        for step, request in REQUESTS:
            first = len(witness.acknowledged)
            task = {"step": step, "request": request, "when": when, "variant": next(variant)}
            task["batches"] = [[n, n + 1] for n in range(first, first + 8, 2)]
            [ended] = at_once(task)
            assert ended["code"] == -signal.SIGKILL
            witness.tried(task, ended)
            # Killed before it made a store, there is none to read. Later, writers reopen it too.
            witness.check(open_store if step == "opening" or request % 5 == 0 else StoreReader)
    assert len(witness.acknowledged) > len(REQUESTS)


@pytest.mark.crash
@pytest.mark.parametrize("step, requests", [("tidying", range(1, 60, 5)), ("importing", range(1, 10))])
def test_a_compaction_or_import_killed_at_a_request_loses_and_changes_nothing(place, tmp_path, step, requests):
    witness, whens = Witness(place), itertools.cycle(["before", "after"])
    with writers(place) as at_once:
        for request, when in zip(requests, whens, strict=False):
            first = 4 * request
            imported = [first + 2, first + 10_000]  # of one temperature: a kill may part those of several
            with closing(open_store(tmp_path / str(request))) as source:
                source.put("teacher", [(key_of(n), record_of(n, further(n), 0)) for n in imported])
            killed = {"step": step, "request": request, "when": when, "variant": 0, "batches": [[first], [first + 1]]}
            killed["source"] = str(source.place)
            whole = killed | {"request": 10**6, "batches": []}
            for task, code in ((killed, -signal.SIGKILL), (whole, 0)):
                [ended] = at_once(task)
                assert ended["code"] == code, (request, ended)
                own = imported if step == "importing" else []
                witness.tried(task | {"batches": [*task["batches"], own]}, ended)
                witness.check()
            if step == "importing":
                assert set(imported) <= witness.said.keys()


@pytest.mark.crash
def test_two_writers_of_the_same_keys_killed_at_any_moment_lose_nothing_and_agree(place):
    moment, witness = random.Random(0), Witness(place)
    with writers(place) as at_once:
        for kill in range(5):
            first = max(witness.acknowledged, default=-1) + 1
            batches = [[n, n + 1] for n in range(first, first + 200, 2)]
            tasks = [
                {"variant": 2 * kill + own, "batches": batches, "seconds": moment.uniform(0.05, 0.8)} for own in (0, 1)
            ]
            for task, ended in zip(tasks, at_once(*tasks), strict=True):
                assert ended["code"] == -signal.SIGKILL
                witness.tried(task, ended)
            witness.check()
    assert witness.acknowledged
