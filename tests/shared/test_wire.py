"""The wire formats: numbers arrive bit for bit, and a malformed request or answer is never taken for a good one."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from tvkd_shared import arrow_codec, json_codec
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.key import token_array
from tvkd_shared.record import Record
from tvkd_shared.wire import (
    CompletionAnswer,
    ItemAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    RequestOptions,
    TextItem,
    TokenItem,
)

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ITEM = {"prompt_token_ids": [1], "completions": [[2]]}
token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
token_items = st.lists(st.tuples(token_ids, st.lists(token_ids, min_size=1, max_size=3)), min_size=1, max_size=3)


@st.composite
def records(draw, temperatures=(1.0, 0.7)):
    tokens = draw(st.integers(1, 9))
    row = arrays(np.float32, tokens + 1, elements=float32)
    return Record.of(
        {tau: draw(row) for tau in temperatures}, draw(arrays(np.float32, tokens, elements=float32)), draw(row)
    )


def answer_of(records: list[Record]) -> PotentialsAnswer:
    options = RequestOptions(temperatures=[0.7, 1.0], entropy=True)
    completions = [
        CompletionAnswer(bytes([number]) * 16, number % 2 == 0, record.length, record)
        for number, record in enumerate(records)
    ]
    return PotentialsAnswer("a" * 32, options.temperatures, options.columns(), [ItemAnswer(completions)])


@given(st.lists(records(), min_size=1, max_size=4))
def test_numbers_travel_bit_for_bit_as_arrow(sent):
    answer = answer_of(sent)
    (item,) = arrow_codec.decode_answer(arrow_codec.encode_answer(answer), answer.columns).items
    for record, completion in zip(sent, item.completions, strict=True):
        assert completion.length == record.length and completion.record is not None
        for name in answer.columns:
            assert completion.record.column(name).tobytes() == record.column(name).tobytes()
    assert [(c.key, c.cached) for c in item.completions] == [(c.key, c.cached) for c in answer.items[0].completions]


@given(st.lists(records(), min_size=1, max_size=4))
def test_numbers_travel_bit_for_bit_as_json(sent):
    (item,) = json.loads(json_codec.encode_answer(answer_of(sent)))["items"]
    for record, completion in zip(sent, item["completions"], strict=True):
        values = np.array(completion["values"], np.float32)
        assert values.tobytes() == np.stack([record.value(0.7), record.value(1.0)]).tobytes()
        assert np.array(completion["action_logits"], np.float32).tobytes() == record.action_logits.tobytes()
        assert np.array(completion["entropies"], np.float32).tobytes() == record.entropies.tobytes()


@given(st.lists(records(), min_size=1, max_size=4), st.data())
def test_tokens_and_ends_of_text_travel_as_arrow(sent, data):
    answer = answer_of(sent)
    answer.items = [ItemAnswer([row], data.draw(token_ids)) for row in answer.items[0].completions]
    for row in (item.completions[0] for item in answer.items):
        row.tokens = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=row.length, max_size=row.length))
        row.ends = data.draw(st.none() | st.just(sorted(row.tokens)))
    answer.items[0].completions.append(answer.items[0].completions[0])
    read = arrow_codec.decode_answer(arrow_codec.encode_answer(answer), answer.columns)
    for item, came in zip(answer.items, read.items, strict=True):
        assert came.prompt_tokens.tolist() == item.prompt_tokens
        for row, other in zip(item.completions, came.completions, strict=True):
            assert other.tokens.tolist() == row.tokens and other.key == row.key
            assert (None if other.ends is None else other.ends.tolist()) == row.ends


@given(token_items, st.sampled_from(["use", "only"]))
def test_a_request_says_the_same_as_arrow_and_as_json(items, cache):
    options = {"temperatures": [1.0, 0.5], "cache": cache, "return": "digests"}
    body = {"items": [{"prompt_token_ids": prompt, "completions": rows} for prompt, rows in items], **options}
    from_json = json_codec.decode_request(json.dumps(body).encode())
    as_items = [TokenItem(token_array(prompt), [token_array(ids) for ids in rows]) for prompt, rows in items]
    from_arrow = arrow_codec.decode_request(arrow_codec.encode_request(RequestOptions(**options), as_items))
    assert from_arrow.model_dump(exclude={"items"}) == from_json.model_dump(exclude={"items"})
    for arrow, plain in zip(from_arrow.items, from_json.items, strict=True):
        assert arrow.prompt_token_ids.tolist() == plain.prompt_token_ids
        assert [ids.tolist() for ids in arrow.completions] == plain.completions


def stream(rows: dict, schema: pa.Schema | None = None, options: dict | None = None, **ipc) -> bytes:
    table = pa.table(rows, schema) if schema else pa.table(rows)
    table = table.replace_schema_metadata({"tvkd": json.dumps(options or {})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**ipc)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


int32, tokens = pa.int32(), pa.list_(pa.int32())
GOOD = {
    "item": pa.array([0, 0, 1], int32),
    "prompt_token_ids": pa.array([[1, 2], None, [3]], tokens),
    "completion_token_ids": pa.array([[4], [5, 6], [7]], tokens),
}


def test_an_arrow_request_may_repeat_the_prompt_or_leave_it_out():
    for again in ([1, 2], None):
        rows = GOOD | {"prompt_token_ids": pa.array([[1, 2], again, [3]], tokens)}
        first, second = arrow_codec.decode_request(stream(rows)).items
        assert first.prompt_token_ids.tolist() == [1, 2] and second.prompt_token_ids.tolist() == [3]
        assert [ids.tolist() for ids in first.completions] == [[4], [5, 6]]


WRONG_STREAMS = {
    "nothing": b"",
    "text": b"{}" * 100,
    "cut off": stream(GOOD)[:-9],
    "bytes behind its end": stream(GOOD) + b"\0" * 8,
    "no rows": stream({name: column[:0] for name, column in GOOD.items()}),
    "a column too few": stream({name: GOOD[name] for name in ("item", "prompt_token_ids")}),
    "a column too many": stream(GOOD | {"text": pa.array(["a", "b", "c"])}),
    "a wide type": stream(GOOD | {"item": pa.array([0, 0, 1], pa.int64())}),
    "floats": stream(GOOD | {"completion_token_ids": pa.array([[4.0], [5.0], [7.0]])}),
    "a null item": stream(GOOD | {"item": pa.array([0, None, 1], int32)}),
    "a null token": stream(GOOD | {"completion_token_ids": pa.array([[4], [None], [7]], tokens)}),
    "a null completion": stream(GOOD | {"completion_token_ids": pa.array([[4], None, [7]], tokens)}),
    "no prompt": stream(GOOD | {"prompt_token_ids": pa.array([None, [1, 2], [3]], tokens)}),
    "two prompts": stream(GOOD | {"prompt_token_ids": pa.array([[1, 2], [1], [3]], tokens)}),
    "an empty completion": stream(GOOD | {"completion_token_ids": pa.array([[4], [], [7]], tokens)}),
    "a negative token": stream(GOOD | {"completion_token_ids": pa.array([[4], [-1], [7]], tokens)}),
    "items that fall": stream(GOOD | {"item": pa.array([1, 1, 0], int32)}),
    "a dictionary": stream(GOOD | {"item": pa.array([0, 0, 1], int32).dictionary_encode()}),
    "compression": stream(GOOD, compression="zstd"),
    "an unknown option": stream(GOOD, options={"temperature": 1.0}),
    "items among the options": stream(GOOD, options={"items": []}),
}


@pytest.mark.parametrize("wrong", WRONG_STREAMS)
def test_a_malformed_arrow_request_is_refused_in_one_line(wrong):
    with pytest.raises(InvalidRequest) as refusal:
        arrow_codec.decode_request(WRONG_STREAMS[wrong])
    assert "\n" not in str(refusal.value)


@given(st.data())
def test_a_damaged_arrow_stream_is_read_or_refused_and_nothing_else(data):
    """Whatever byte is changed, and wherever the stream is cut."""
    body = bytearray(stream(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrow_codec.decode_request(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except InvalidRequest as refusal:
        assert "\n" not in str(refusal)


def test_items_are_token_ids_or_text_or_messages():
    request = PotentialsRequest(
        items=[
            ITEM,
            {"prompt": "Hello", "completions": ["world"]},
            {"prompt": [{"role": "user", "content": "Hello"}], "completions": ["world"]},
        ]
    )
    assert [type(item) for item in request.items] == [TokenItem, TextItem, TextItem]


@pytest.mark.parametrize(
    "wrong",
    [
        {"items": []},
        {"items": [{"prompt_token_ids": [], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [1], "completions": []}]},
        {"items": [{"prompt_token_ids": [1], "completions": [[]]}]},
        {"items": [{"prompt_token_ids": [1.5], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [True], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": ["1"], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [-1], "completions": [[1]]}]},
        {"items": [ITEM | {"prompt": "both"}]},
        {"items": [{"prompt": "", "completions": ["a"]}]},
        {"items": [ITEM], "temperatures": []},
        {"items": [ITEM], "temperatures": [0.0]},
        {"items": [ITEM], "temperatures": [float("inf")]},
        {"items": [ITEM], "temperatures": [1.0, 1.0]},
        {"items": [ITEM], "temperature": [1.0]},
        {"items": [ITEM], "cache": "no"},
        {"items": [ITEM], "cache": "skip", "return": "digests"},
    ],
)
def test_a_malformed_request_is_refused(wrong):
    with pytest.raises(ValidationError):
        PotentialsRequest.model_validate(wrong)
