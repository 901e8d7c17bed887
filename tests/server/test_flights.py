"""Single flight and admission, on their own: what is shared, what is tried again, what is refused."""

import asyncio

import numpy as np
import pytest

from tvkd_server.admission import Admission
from tvkd_server.flights import Flights, Landing
from tvkd_server.turns import Asker
from tvkd_shared.errors import Overloaded, TeacherUnavailable
from tvkd_shared.record import Record, column_names

COLUMNS = column_names()
RECORD = Record.of({1.0: np.zeros(2, np.float32)}, np.zeros(1, np.float32), np.zeros(2, np.float32))


def nobody(_):
    """Nobody hears what landed."""


def test_an_error_reaches_everyone_who_waits_and_the_key_is_free_again():
    async def run():
        flights = Flights()
        with pytest.raises(TeacherUnavailable), flights.claim([b"a"], COLUMNS, nobody):
            waiter = flights.claim([b"a", b"b"], COLUMNS, nobody)
            assert waiter.keys == [b"b"]
            raise TeacherUnavailable("no")
        with pytest.raises(TeacherUnavailable):
            await waiter.others()
        assert flights.claim([b"a"], COLUMNS, nobody).keys == [b"a"]

    asyncio.run(run())


def test_a_cancelled_flight_leaves_its_key_to_the_one_who_waits():
    async def run():
        flights = Flights()

        async def owner():
            with flights.claim([b"a"], COLUMNS, nobody):
                await asyncio.sleep(60)

        task = asyncio.create_task(owner())
        await asyncio.sleep(0)
        waiter = flights.claim([b"a"], COLUMNS, nobody)
        assert waiter.keys == []
        task.cancel()
        assert await waiter.others() == {}
        assert flights.claim([b"a"], COLUMNS, nobody).keys == [b"a"]

    asyncio.run(run())


def test_an_overload_is_not_passed_on_to_those_who_wait():
    async def run():
        flights = Flights()
        with pytest.raises(Overloaded), flights.claim([b"a"], COLUMNS, nobody):
            waiter = flights.claim([b"a"], COLUMNS, nobody)
            raise Overloaded("full")
        assert await waiter.others() == {}

    asyncio.run(run())


def test_the_same_key_with_other_columns_is_another_flight():
    async def run():
        flights = Flights()
        with flights.claim([b"a"], COLUMNS, nobody):
            assert flights.claim([b"a"], column_names([0.5]), nobody).keys == [b"a"]

    asyncio.run(run())


def test_everyone_hears_of_each_key_as_it_lands_and_who_waited_hears_of_no_computation():
    async def run():
        flights, mine, yours = Flights(), {}, {}
        with flights.claim([b"a", b"b", b"c"], COLUMNS, mine.update) as claim:
            waiter = flights.claim([b"c", b"a", b"b"], COLUMNS, yours.update)
            claim.land({b"b": Landing(RECORD, computed=True)})
            assert list(mine) == [b"b"] and claim.keys == [b"a", b"c"]
            await asyncio.sleep(0)
            assert list(yours) == [b"b"]
            claim.fail([b"a"], TeacherUnavailable("no"))
            claim.land({b"c": Landing(RECORD, computed=False)})
        with pytest.raises(TeacherUnavailable):
            await waiter.others()
        assert [landing.computed for landing in mine.values()] == [True, False]
        assert list(yours) == [b"b", b"c"] and not any(landing.computed for landing in yours.values())

    asyncio.run(run())


def test_a_request_larger_than_the_queue_is_admitted_alone():
    admission = Admission(100)
    with admission.hold(500, Asker()), pytest.raises(Overloaded) as refused, admission.hold(1, Asker()):
        pass
    assert refused.value.retry_after == 2.0
    assert admission.queued == 0


def test_a_full_queue_refuses_what_computes_and_not_what_costs_nothing():
    admission = Admission(100)
    with admission.hold(100, Asker()), admission.hold(0, Asker()):
        pass
