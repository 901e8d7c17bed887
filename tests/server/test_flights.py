"""Single flight and admission, on their own: what is shared, what is tried again, what is refused."""

import asyncio

import pytest

from tvkd_server.admission import Admission
from tvkd_server.flights import Flights
from tvkd_shared.errors import Overloaded, TeacherUnavailable


def test_an_error_is_everyones_who_waits_and_the_key_is_free_again():
    async def run():
        flights = Flights()
        with pytest.raises(TeacherUnavailable), flights.claim([b"a"]):
            waiter = flights.claim([b"a", b"b"])
            assert (waiter.mine, list(waiter.theirs)) == ([b"b"], [b"a"])
            raise TeacherUnavailable("no")
        with pytest.raises(TeacherUnavailable):
            await waiter.others()
        assert flights.claim([b"a"]).mine == [b"a"]

    asyncio.run(run())


def test_a_cancelled_flight_leaves_its_key_to_the_one_who_waits():
    async def run():
        flights = Flights()

        async def owner():
            with flights.claim([b"a"]):
                await asyncio.sleep(60)

        task = asyncio.create_task(owner())
        await asyncio.sleep(0)
        waiter = flights.claim([b"a"])
        assert waiter.mine == []
        task.cancel()
        await waiter.others()
        assert flights.claim([b"a"]).mine == [b"a"]

    asyncio.run(run())


def test_a_request_larger_than_the_queue_is_admitted_alone():
    admission = Admission(100)
    with admission.hold(500), pytest.raises(Overloaded) as refused, admission.hold(1):
        pass
    assert refused.value.retry_after == 2.0
    assert admission.queued == 0


def test_a_full_queue_refuses_what_computes_and_not_what_costs_nothing():
    admission = Admission(100)
    with admission.hold(100), admission.hold(0):
        pass
