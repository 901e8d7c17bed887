"""An answer in parts: read the same in whatever pieces its bytes come, and never taken for whole when it is not."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tvkd_shared import arrow_codec
from tvkd_shared.arrow_stream import AnswerReader, AnswerWriter
from tvkd_shared.record import Record
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, PotentialsRequest, Problem, TextItem, TokenItem

ITEMS = [TokenItem([1], [[2, 3], [4]]), TokenItem([5], [[6]]), TokenItem([7], [[8, 9, 10]])]
REQUEST = PotentialsRequest(temperatures=[1.0, 0.5], entropy=True, stream=True, items=ITEMS)
PROBLEM = Problem(title="Teacher unavailable", status=503, detail="it died", code="teacher-unavailable")


def answered(item: TokenItem, number: int) -> ItemAnswer:
    rows = []
    for index, ids in enumerate(item.completions):
        states = np.arange(len(ids) + 1, dtype=np.float32) + 10 * number + index
        record = Record.of({1.0: states, 0.5: states / 2}, states[1:], states / 3)
        rows.append(CompletionAnswer(bytes([number, index] * 8), index == 0, len(ids), record))
    return ItemAnswer(rows)


ANSWERED = {number: answered(item, number) for number, item in enumerate(ITEMS)}


def written(*parts: list[int], failure: float | bool | None = False) -> bytes:
    writer = AnswerWriter(REQUEST, "a" * 32)
    stream = b"".join(writer.part({number: ANSWERED[number] for number in part}) for part in parts)
    return stream + (writer.end() if failure is False else writer.failure(PROBLEM, failure))


def read(pieces):
    """(rows with numbers, problem, whether it ended) of a stream that comes in pieces."""
    reader, rows, problem = AnswerReader(REQUEST.columns()), {}, None
    for piece in pieces:
        for part in reader.feed(piece):
            problem = problem or (part.problem and (part.problem, part.retry_after))
            assert part.teacher_id == "a" * 32 and part.temperatures == [1.0, 0.5]
            assert not rows.keys() & part.completions.keys()
            rows |= part.completions
    return {row: plain(one) for row, one in rows.items()}, problem, reader.ended


def plain(row: CompletionAnswer):
    return row.key, row.cached, [row.record.column(name).tolist() for name in REQUEST.columns()]


def rows_of(*numbers):
    first = {0: 0, 1: 2, 2: 3}
    return {
        first[number] + index: plain(row)
        for number in numbers
        for index, row in enumerate(ANSWERED[number].completions)
    }


def test_parts_in_any_order_are_read_by_their_rows():
    rows, problem, ended = read([written([2], [0, 1])])
    assert rows == rows_of(2, 0, 1) and problem is None and ended


def test_any_arrow_library_reads_the_stream_and_finds_the_request_s_rows():
    table = pa.ipc.open_stream(written([2], [1], [0])).read_all()
    assert table.column("row").to_pylist() == [3, 2, 0, 1]
    whole = arrow_codec.decode_answer(written([2], [1], [0]), REQUEST.columns())
    assert [row.key for row in whole.items[0].completions] == [
        bytes(key) for key in ([0] * 16, [0, 1] * 8, [1, 0] * 8, [2, 0] * 8)
    ]


@given(st.lists(st.integers(0, len(written([2], [0, 1]))), max_size=6).map(sorted))
def test_the_pieces_in_which_it_comes_make_no_difference(cuts):
    stream = written([2], [0, 1])
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == read([stream])
    assert read([stream[i : i + 1] for i in range(len(stream))]) == read([stream])


@pytest.mark.parametrize("seconds", [None, 5.0])
def test_a_failure_is_told_and_the_stream_does_not_end(seconds):
    stream = written([1], failure=seconds)
    rows, problem, ended = read([stream])
    assert rows == rows_of(1) and problem == (PROBLEM, seconds) and not ended
    reader = pa.ipc.open_stream(stream)
    batches = list(reader.iter_batches_with_custom_metadata())
    assert batches[1].batch.num_rows == 0 and b"it died" in batches[1].custom_metadata[b"tvkd"]
    with pytest.raises(ValueError, match="cut off"):
        arrow_codec.decode_answer(stream, REQUEST.columns())


def test_a_stream_that_is_cut_anywhere_does_not_end():
    stream = written([2], [0, 1])
    assert not any(read([stream[:length]])[2] for length in range(len(stream)))


def compressed():
    batch = pa.ipc.open_stream(written([0])).read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


WRONG = {
    "text": b'{"teacher_id": "a"}',
    "bytes behind its end": written([0]) + b"\xff\xff\xff\xff\0\0\0\0",
    "two streams": written([0]) * 2,
    "compression": compressed(),
    "a negative length": b"\xff\xff\xff\xff" + (48).to_bytes(4, "little") + b"\xff" * 48,
    "no schema": written([0])[len(pa.ipc.open_stream(written([0])).schema.serialize()) :],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_such_stream_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\w"):
        read([WRONG[wrong]])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@example([(20, 66), (280, 139)])  # `pyarrow.ipc.read_schema` dies of this, with its process
def test_a_damaged_stream_is_read_or_refused_and_nothing_else_happens(changes):
    stream = bytearray(written([2], [0, 1], failure=1.0))
    for place, byte in changes:
        stream[place % len(stream)] = byte
    reader = AnswerReader(REQUEST.columns())
    try:
        for part in reader.feed(bytes(stream)):
            assert part.problem or all(np.isfinite(one.record.value(1.0)).all() for one in part.completions.values())
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


def test_text_has_its_columns_in_every_part_also_where_a_part_holds_none():
    items = [TokenItem([1], [[2]]), TextItem(prompt="x", completions=["y"])]
    request = PotentialsRequest(stream=True, items=items)
    record = Record.of({1.0: np.zeros(2, np.float32)}, np.zeros(1, np.float32), np.zeros(2, np.float32))
    writer = AnswerWriter(request, "a" * 32)
    stream = writer.part({0: ItemAnswer([CompletionAnswer(b"a" * 16, True, 1, record)])})
    stream += writer.part({1: ItemAnswer([CompletionAnswer(b"b" * 16, True, 1, record, [7], [1])], [8])}) + writer.end()
    plain, text = pa.ipc.open_stream(stream).read_all().to_pylist()
    assert (plain["tokens"], text["tokens"], text["prompt_tokens"], text["ends"]) == (None, [7], [8], [1])


@pytest.mark.parametrize("return_", ["digests", "tokens"])
def test_only_values_are_streamed(return_):
    with pytest.raises(ValueError, match="stream: true sends values"):
        PotentialsRequest.model_validate(
            {"stream": True, "return": return_, "items": [{"prompt": "a", "completions": ["b"]}]}
        )
