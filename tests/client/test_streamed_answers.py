"""The client trusts no streamed answer, and never takes one that ended early for a whole one."""

import asyncio
import threading

import httpx
import numpy as np
import pyarrow as pa
import pytest

from arrow_answers import TEACHER, URL, read
from tvkd_client import AsyncTeacherClient, TeacherClient
from tvkd_shared.arrow_stream import AnswerWriter
from tvkd_shared.errors import InvalidRequest, TeacherMismatch, TeacherUnavailable, WrongAnswer
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, Problem, TokenItem

ITEMS = [TokenItem([5, 6], [[7, 8, 9], [10]]), TokenItem([11], [[12]]), TokenItem([13], [[14, 15]])]


def rows_of(item):
    rows = []
    for key, ids in zip(
        completion_keys(TEACHER, item.prompt_token_ids, item.completions), item.completions, strict=True
    ):
        states = np.full(len(ids) + 1, 1.5, np.float32)
        rows.append(CompletionAnswer(key, True, len(ids), Record.of({1.0: states}, states[1:], states)))
    return ItemAnswer(rows)


def pieces_of(request, order, change=lambda items: None, teacher=TEACHER):
    """The parts of an answer, an item each; and the writer, to end it."""
    asked = read(request)
    assert asked.stream
    items = {number: rows_of(item) for number, item in enumerate(asked.items)}
    change(items)
    writer = AnswerWriter(asked, teacher)
    return [writer.part({number: items[number]}) for number in order if number in items], writer


def clients_of(handler, **settings):
    """The items that come, by the blocking client and on a loop."""
    settings = {"transport": httpx.MockTransport(handler), "patience": 5} | settings

    def blocking(items):
        yield from TeacherClient(URL, **settings).stream(items)

    def on_loop(items):
        async def ask():
            async with AsyncTeacherClient(URL, **settings) as client:
                return [answer async for answer in client.stream(items)]

        yield from asyncio.run(ask())

    return blocking, on_loop


def both(handler, **settings):
    blocking, on_loop = clients_of(handler, **settings)
    came = [index for index, _ in blocking(ITEMS)]
    assert [index for index, _ in on_loop(ITEMS)] == came
    return came


def test_items_come_in_the_order_in_which_they_were_sent():
    def handler(request):
        parts, writer = pieces_of(request, [2, 0, 1])
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    assert both(handler) == [2, 0, 1]


def test_indexes_are_those_of_the_caller_s_items_in_whatever_requests_they_go():
    def handler(request):
        parts, writer = pieces_of(request, [0, 1])
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    items = [TokenItem([n], [[n + 1] * (n + 1)]) for n in range(9)]
    for stream in clients_of(handler, request_tokens=1, in_flight=3):
        assert {index: records[0].length for index, records in stream(items)} == {n: n + 1 for n in range(9)}


@pytest.mark.parametrize("end", ["cut", "no end mark", "later"])
def test_after_an_early_end_only_what_is_lacking_is_asked_for(end):
    asked, later = [], Problem(title="", status=503, detail="later", code="teacher-unavailable")

    def handler(request):
        asked.append([item.prompt_token_ids.tolist() for item in read(request).items])
        parts, writer = pieces_of(request, [len(asked[-1]) - 1])
        if len(asked[-1]) == 1:
            return httpx.Response(200, content=parts[0] + writer.end())

        def body():
            yield parts[0]
            if end == "cut":
                raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
            if end == "later":
                yield writer.failure(later, 60.0)

        return httpx.Response(200, stream=Pieces(body))

    assert both(handler) == [2, 1, 0]
    assert asked[:3] == [[[5, 6], [11], [13]], [[5, 6], [11]], [[5, 6]]]


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return self.body()

    async def __aiter__(self):
        for piece in self.body():
            yield piece


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff"])
def test_an_answer_that_never_comes_whole_is_an_error(body):
    for stream in clients_of(lambda _: httpx.Response(200, content=body), patience=0.1):
        with pytest.raises(TeacherUnavailable, match="the answer was cut off"):
            list(stream(ITEMS))


def test_an_early_end_that_asking_again_does_not_mend_is_raised_behind_what_came():
    def handler(request):
        parts, writer = pieces_of(request, [1])
        problem = Problem(title="", status=503, detail="not all finite", code="teacher-unavailable")
        return httpx.Response(200, content=parts[0] + writer.failure(problem, None))

    came = []
    with pytest.raises(TeacherUnavailable, match="not all finite"):
        came.extend(index for index, _ in clients_of(handler)[0](ITEMS))
    assert came == [1]


WRONG = {
    "another key": lambda items: setattr(items[1].completions[0], "key", b"0" * 16),
    "another length": lambda items: items.update({1: rows_of(TokenItem([11], [[12, 13]]))}),
    "an item too few": lambda items: items.pop(1),
    "NaN": lambda items: items[1].completions[0].record.numbers.__setitem__((0, 0), float("nan")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_item_that_does_not_fit_its_question_raises(wrong):
    def handler(request):
        parts, writer = pieces_of(request, [0, 1, 2], WRONG[wrong])
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    for stream in clients_of(handler):
        with pytest.raises(WrongAnswer):
            list(stream(ITEMS))


@pytest.mark.parametrize("first", [0, 1])
def test_half_an_item_raises(first):
    def handler(request):
        parts, writer = pieces_of(request, [0, 1, 2])
        table = pa.ipc.open_stream(b"".join(parts) + writer.end()).read_all()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(first, 1))
        return httpx.Response(200, content=sink.getvalue().to_pybytes())

    for stream in clients_of(handler):
        with pytest.raises(WrongAnswer, match="1 completions came, 2 were asked for"):
            list(stream(ITEMS))


def test_rows_that_nobody_asked_for_and_rows_that_come_twice_raise():
    def twice(request):
        parts, writer = pieces_of(request, [0, 0, 1, 2])
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    def too_many(request):
        asked = read(request)
        asked.items.append(TokenItem([20], [[21]]))
        writer = AnswerWriter(asked, TEACHER)
        parts = [writer.part({number: rows_of(item)}) for number, item in enumerate(asked.items)]
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    for handler, line in ((twice, "came twice"), (too_many, "row 4 came; the request has 4 rows")):
        for stream in clients_of(handler):
            with pytest.raises(WrongAnswer, match=line):
                list(stream(ITEMS))


def test_the_teacher_must_not_change_amid_two_streams():
    teachers = iter([TEACHER, "b" * 32])

    def handler(request):
        parts, writer = pieces_of(request, [0, 1, 2], teacher=next(teachers))
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    client = TeacherClient(URL, transport=httpx.MockTransport(handler))
    assert len(list(client.stream(ITEMS))) == 3
    with pytest.raises(TeacherMismatch):
        list(client.stream(ITEMS))


def test_a_refusal_is_raised_before_any_item():
    problem = {"title": "", "status": 422, "detail": "no", "code": "invalid-request"}
    for stream in clients_of(lambda _: httpx.Response(422, json=problem)):
        with pytest.raises(InvalidRequest, match=r"^no$"):
            next(stream(ITEMS))


def test_items_are_drawn_as_they_are_sent_and_leaving_early_leaves_no_thread():
    def handler(request):
        parts, writer = pieces_of(request, [0])
        return httpx.Response(200, content=b"".join(parts) + writer.end())

    drawn = []
    items = (drawn.append(n) or TokenItem([n], [[n + 1]]) for n in range(1000))
    stream = TeacherClient(URL, transport=httpx.MockTransport(handler), request_tokens=1, in_flight=3).stream(items)
    next(stream)
    stream.close()
    assert len(drawn) <= 5
    for thread in [one for one in threading.enumerate() if one.name.startswith("tvkd_")]:
        thread.join(5)
        assert not thread.is_alive()
