"""The client on an event loop: the same values and errors as the blocking one, and a loop that others can use."""

import asyncio
import inspect
import time
from itertools import chain, repeat

import httpx
import numpy as np
import pytest

from arrow_answers import ITEM, URL, answer, read
from tvkd_client import AsyncTeacherClient, TeacherClient
from tvkd_shared.errors import InvalidRequest, NotCached, TeacherUnavailable, TokenOutOfRange, TVKDError
from tvkd_shared.wire import TextItem, TokenItem

ITEMS = [TokenItem([40, 41 + n], [[42, 43], [44]]) for n in range(12)]
TEXT = TextItem(prompt=[{"role": "user", "content": "w20"}], completions=["w30", "w31"])


def async_client_of(handler, **settings) -> AsyncTeacherClient:
    return AsyncTeacherClient(URL, transport=httpx.MockTransport(handler), **{"patience": 30} | settings)


def public(client):
    return {name: method for name, method in vars(client).items() if inspect.isfunction(method) and name[0] != "_"}


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    blocking, on_loop = public(TeacherClient), public(AsyncTeacherClient)
    assert on_loop.keys() - blocking.keys() == {"close"} and not blocking.keys() - on_loop.keys()
    for name, method in blocking.items():
        one, other = inspect.signature(method), inspect.signature(on_loop[name])
        assert one.parameters == other.parameters
        assert name == "stream" or one.return_annotation == other.return_annotation
    settings = inspect.signature(AsyncTeacherClient).parameters.keys() - {"url", "network"}
    assert settings == inspect.get_annotations(inspect.getmodule(TeacherClient).ClientSettings).keys()


def test_both_clients_give_the_same_values(server):
    async def ask():
        async with AsyncTeacherClient(server.url, request_tokens=16) as client:
            filled = await client.fill(iter(ITEMS), [0.5])
            records = await client.potentials(ITEMS, temperatures=[0.5])
            text, tokens = await client.text_potentials([TEXT]), await client.tokenize([TEXT])
            return filled, records, text, tokens, await client.teacher(), await client.vocabulary()

    filled, records, text, tokens, teacher, vocabulary = asyncio.run(ask())
    client = TeacherClient(server.url)
    assert filled == 24 and client.fill(ITEMS, [0.5]) == 0
    for mine, its in zip(records, client.potentials(ITEMS, temperatures=[0.5]), strict=True):
        for one, other in zip(mine, its, strict=True):
            assert one.columns == other.columns
            np.testing.assert_array_equal(one.numbers, other.numbers)
    (same,) = client.text_potentials([TEXT])
    assert [row.key for row in text[0].completions] == [row.key for row in same.completions]
    assert (tokens, teacher, vocabulary) == (client.tokenize([TEXT]), client.teacher(), client.vocabulary())


WRONG = {
    "a token out of range": (TokenOutOfRange, lambda client: client.potentials([TokenItem([900], [[1]])])),
    "no completion": (InvalidRequest, lambda client: client.potentials([TokenItem([1], [])])),
    "not cached": (NotCached, lambda client: client.potentials([TokenItem([77], [[78, 79]])], cache="only")),
    "a temperature": (InvalidRequest, lambda client: client.fill(ITEMS, [-1.0])),
    "a text": (InvalidRequest, lambda client: client.tokenize([TextItem(prompt="nobody", completions=[" "])] * 2)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_both_clients_raise_the_same_errors(server, wrong):
    kind, call = WRONG[wrong]

    async def ask():
        async with AsyncTeacherClient(server.url) as client:
            await call(client)

    lines = []
    for raising in (lambda: call(TeacherClient(server.url)), lambda: asyncio.run(ask())):
        with pytest.raises(TVKDError) as caught:
            raising()
        assert isinstance(caught.value, kind)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


def test_a_client_serves_one_loop_after_another(server):
    client = AsyncTeacherClient(server.url)

    async def ask():
        return await client.potentials(ITEMS[:1])

    assert len([asyncio.run(ask()) for _ in range(3)]) == 3


def test_the_blocking_client_works_where_a_loop_runs(server):
    async def ask():
        return TeacherClient(server.url, request_tokens=4).potentials(ITEMS)

    assert len(asyncio.run(ask())) == len(ITEMS)


class Slow(httpx.AsyncBaseTransport):
    """Answers after a while, and counts how many requests wait at once and how many were cut off."""

    def __init__(self, first, others, handler=answer):
        self.seconds, self.handler = chain([first], repeat(others)), handler
        self.waiting, self.most, self.cut = 0, 0, 0

    async def handle_async_request(self, request):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await asyncio.sleep(next(self.seconds))
        except asyncio.CancelledError:
            self.cut += 1
            raise
        finally:
            self.waiting -= 1
        return self.handler(request)


def test_as_many_requests_as_allowed_are_under_way_and_come_back_in_order():
    transport = Slow(0.01, 0.02)
    items = [TokenItem([i], [[i] * (i + 1)]) for i in range(12)]
    client = AsyncTeacherClient(URL, transport=transport, request_tokens=3, in_flight=3)
    rows = asyncio.run(client.potentials(items))
    assert [row[0].length for row in rows] == list(range(1, 13)) and transport.most == 3


def test_a_cancelled_call_cuts_its_requests_off():
    transport = Slow(60, 60)

    async def ask():
        async with asyncio.timeout(0.1):
            await AsyncTeacherClient(URL, transport=transport, request_tokens=3, in_flight=3).potentials(ITEMS)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert (transport.most, transport.cut, transport.waiting) == (3, 3, 0)


def test_an_error_cuts_the_other_requests_off():
    def refuse_first(request):
        raise httpx.InvalidURL("no")

    transport = Slow(0.1, 60, refuse_first)
    with pytest.raises(httpx.InvalidURL):
        asyncio.run(AsyncTeacherClient(URL, transport=transport, request_tokens=3, in_flight=3).potentials(ITEMS))
    assert (transport.cut, transport.waiting) == (2, 0)


def test_the_loop_is_free_while_the_client_waits_to_ask_again():
    tries = []

    def handler(request):
        tries.append(time.monotonic())
        if len(tries) > 1:
            return answer(request)
        problem = {"title": "", "status": 429, "detail": "the queue is full", "code": "overloaded"}
        return httpx.Response(429, json=problem, headers={"Retry-After": "1"})

    async def ask():
        asking, turns = asyncio.create_task(async_client_of(handler).potentials([ITEM])), 0
        while not asking.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(ask()) > 50 and tries[1] - tries[0] >= 1


def test_the_key_goes_along_and_the_first_teacher_is_the_only_one():
    headers, guards = [], []

    def handler(request):
        headers.append(request.headers["Authorization"])
        guards.append(read(request).teacher_id)
        return answer(request)

    async def ask():
        async with async_client_of(handler, api_key="secret") as client:
            await client.potentials([ITEM])
            await client.potentials([ITEM])

    asyncio.run(ask())
    assert headers == ["Bearer secret"] * 2 and guards == [None, "a" * 32]


def test_a_server_that_is_not_there_is_said_in_one_line():
    with pytest.raises(TeacherUnavailable, match=r"cannot reach .*; is `tvkd serve` running there\?"):
        asyncio.run(AsyncTeacherClient("http://127.0.0.1:9", patience=0.1).teacher())
