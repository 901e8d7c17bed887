"""Requests and answers as Arrow IPC streams, with no Python for each token.

A request has one row for each completion: `item` (int32, the rows of an item stand together and its number never
falls), `prompt_token_ids` (list<int32>, null where it repeats the item's first row) and `completion_token_ids`. Its
options stand in the schema's metadata under `tvkd`, as JSON with the names that a JSON request has.

An answer has one row for each of the request's rows, in any order: `row` (int32, the request's row), `key` (16 bytes),
`cached`, `length` T, and a list<float32> for each column of the record, with T + 1 numbers or, for a column of actions,
T. Teacher id and temperatures stand in the metadata. The answer to text items, whose request is always JSON, has three
more columns of list<int32>: `prompt_tokens`, null where the row repeats its item's first row, `tokens`, and `ends`.

Bodies are taken as hostile: only the exact types are read, and nothing dictionary-encoded or compressed, whose size
after reading has no bound.
"""

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from tvkd_shared.arrow_messages import END_OF_STREAM, is_compressed
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.key import KEY_BYTES
from tvkd_shared.record import Record, has_last_state
from tvkd_shared.wire import (
    CompletionAnswer,
    Item,
    ItemAnswer,
    PotentialsAnswer,
    PotentialsRequest,
    RequestOptions,
    TokenItem,
    first_mistake,
)

MEDIA_TYPE = "application/vnd.apache.arrow.stream"

METADATA = b"tvkd"
_TOKENS, _NUMBERS = pa.list_(pa.int32()), pa.list_(pa.float32())
_REQUEST = {"item": pa.int32(), "prompt_token_ids": _TOKENS, "completion_token_ids": _TOKENS}
_TEXT = ("prompt_tokens", "tokens", "ends")
_ANSWER = {"row": pa.int32(), "key": pa.binary(KEY_BYTES), "cached": pa.bool_(), "length": pa.int32()}
FAULTS = (pa.ArrowException, ValueError, OSError, MemoryError)


def encode_request(options: RequestOptions, items: Sequence[TokenItem]) -> bytes:
    """A request with each prompt in its item's first row. Raises InvalidRequest when a token id is 2^31 or more."""
    completions = [ids for item in items for ids in item.completions]
    counts_I = np.array([len(item.completions) for item in items])
    first_I = np.cumsum(counts_I) - counts_I
    lengths_N, is_null_N = np.zeros(len(completions), np.int64), np.ones(len(completions), bool)
    lengths_N[first_I], is_null_N[first_I] = [len(item.prompt_token_ids) for item in items], False
    columns = [
        pa.array(np.repeat(np.arange(len(items), dtype=np.int32), counts_I)),
        _list_array(_ids([item.prompt_token_ids for item in items]), lengths_N, pa.array(is_null_N)),
        _list_array(_ids(completions), list(map(len, completions))),
    ]
    about = options.model_dump_json(by_alias=True, exclude_none=True)
    return _stream(_batch(dict(zip(_REQUEST, columns, strict=True)), about))


def _ids(rows: Sequence[Any]) -> npt.NDArray[np.int32]:
    flat = np.concatenate(rows)
    if flat.max() >= 2**31:
        raise InvalidRequest(f"token id {flat.max()} does not fit an Arrow request, which holds 0 … 2^31 − 1")
    ids: npt.NDArray[np.int32] = flat.astype(np.int32)
    return ids


def decode_request(body: bytes) -> PotentialsRequest:
    """A request with token ids as uint32 arrays. Raises InvalidRequest with the first mistake and its place."""
    try:
        metadata, batch = _table(body)
        options = RequestOptions.model_validate_json(metadata)
        return PotentialsRequest.model_construct(**dict(options), items=_items(batch))
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        raise InvalidRequest(f"schema metadata `tvkd`: {first_mistake(mistakes)}") from error
    except FAULTS as error:
        raise InvalidRequest(f"the body is not a request as an Arrow stream: {line_of(error)}") from error


def _items(batch: pa.RecordBatch) -> list[Item]:
    _check_types(batch.schema, _REQUEST)
    item_N = _plain(batch, "item")
    if (item_N < 0).any() or (np.diff(item_N) < 0).any():
        raise ValueError("column item: numbers start at 0 or above and never fall from row to row")
    completions, prompts = _tokens(batch, "completion_token_ids"), _tokens(batch, "prompt_token_ids", nulls=True)
    items: list[Item] = []
    bounds = [0, *(np.flatnonzero(np.diff(item_N)) + 1).tolist(), len(item_N)]
    for first, end in pairwise(bounds):
        prompt = prompts[first]
        if prompt is None:
            raise ValueError(f"row {first}: the first row of an item needs its prompt_token_ids")
        for row in range(first + 1, end):
            if prompts[row] is not None and not np.array_equal(prompts[row], prompt):
                raise ValueError(f"row {row}: its prompt differs from that of row {first}, which has the same item")
        items.append(TokenItem(prompt, completions[first:end]))
    return items


def _tokens(batch: pa.RecordBatch, name: str, *, nulls: bool = False) -> list[Any]:
    """Token ids of each row as uint32 arrays, None where the row is null."""
    flat, offsets = _lists(batch, name, nulls=nulls)
    if len(flat) and flat[offsets[0] : offsets[-1]].min(initial=0) < 0:
        row = int(np.searchsorted(offsets, offsets[0] + np.argmax(flat[offsets[0] : offsets[-1]] < 0), "right")) - 1
        raise ValueError(f"row {row}: {name} has a negative token id")
    flat = flat.view(np.uint32)
    rows = [flat[start:end] for start, end in pairwise(offsets.tolist())]
    if nulls and batch.column(name).null_count:
        valid_N = batch.column(name).is_valid().to_numpy(zero_copy_only=False)
        rows = [ids if valid else None for ids, valid in zip(rows, valid_N.tolist(), strict=True)]
    if empty := [row for row, ids in enumerate(rows) if ids is not None and not len(ids)]:
        raise ValueError(f"row {empty[0]}: {name} is empty; one token at least is needed")
    return rows


def _tokens_if_there(batch: pa.RecordBatch, name: str) -> list[Any]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    _check_types(batch.schema, {name: _TOKENS}, others=True)
    return _tokens(batch, name, nulls=True)


def encode_answer(answer: PotentialsAnswer) -> bytes:
    row_N = np.arange(sum(len(item.completions) for item in answer.items))
    batch = answer_batch(answer, row_N, text=any(item.prompt_tokens is not None for item in answer.items))
    return _stream(batch)


def answer_batch(answer: PotentialsAnswer, row_N: npt.NDArray[np.int_], *, text: bool) -> pa.RecordBatch:
    """All of an answer's items as one batch. `row_N` are their rows in the request; `text` adds the columns of text."""
    completions = [completion for item in answer.items for completion in item.completions]
    lengths_N = np.array([completion.length for completion in completions], np.int32)
    keys = pa.py_buffer(b"".join(completion.key for completion in completions))
    columns = {
        "row": pa.array(row_N.astype(np.int32)),
        "key": pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(completions), [None, keys]),
        "cached": pa.array([completion.cached for completion in completions], pa.bool_()),
        "length": pa.array(lengths_N),
    }
    records = [completion.record for completion in completions if completion.record is not None]
    if answer.columns:
        numbers_SK = np.concatenate([record.numbers for record in records])
        has_action_S = _has_action(lengths_N)
        for name in answer.columns:
            numbers_S = numbers_SK[:, records[0].columns.index(name)]
            states = has_last_state(name)
            columns[name] = _list_array(numbers_S if states else numbers_S[has_action_S], lengths_N + states)
    if text:
        prompts = [[item.prompt_tokens, *[None] * (len(item.completions) - 1)] for item in answer.items]
        rows = [list(chain(*prompts)), *([getattr(row, name) for row in completions] for name in _TEXT[1:])]
        columns |= {name: pa.array(row, _TOKENS) for name, row in zip(_TEXT, rows, strict=True)}
    return _batch(columns, json.dumps({"teacher_id": answer.teacher_id, "temperatures": answer.temperatures}))


def decode_answer(body: bytes, columns: tuple[str, ...]) -> PotentialsAnswer:
    """An answer with records of `columns`, in the order of the request's rows.

    All completions are in one item, unless all are of text: then each item has its own. Columns beyond these are left
    unread. Raises ValueError when the body is no such answer or a number is not finite.
    """
    try:
        metadata, batch = _table(body)
        about = json.loads(metadata)
        row_N, completions, prompts = read_completions(batch, columns)
        if not np.array_equal(np.sort(row_N), np.arange(len(row_N))):
            raise ValueError("its rows are not each row of the request once")
        items: list[ItemAnswer] = []
        for row in np.argsort(row_N).tolist():
            if prompts[row] is not None or not items:
                items.append(ItemAnswer([], prompts[row]))
            items[-1].completions.append(completions[row])
        return PotentialsAnswer(about["teacher_id"], about["temperatures"], columns, items)
    except (LookupError, TypeError, *FAULTS) as error:
        raise ValueError(line_of(error)) from error


def read_completions(
    batch: pa.RecordBatch, columns: tuple[str, ...]
) -> tuple[npt.NDArray[np.int32], list[CompletionAnswer], list[Any]]:
    """Each completion's row in the request, the completion, and its prompt's tokens. Raises ValueError."""
    _check_types(batch.schema, _ANSWER | dict.fromkeys(columns, _NUMBERS), others=True)
    row_N, lengths_N = _plain(batch, "row"), _plain(batch, "length")
    records: Sequence[Record | None] = _records(batch, columns, lengths_N) if columns else [None] * len(row_N)
    keys, cached = batch.column("key").to_pylist(), batch.column("cached").to_pylist()
    if None in keys or None in cached:
        raise ValueError("a key or a `cached` is null")
    prompts, tokens, ends = (_tokens_if_there(batch, name) for name in _TEXT)
    return row_N, [*map(CompletionAnswer, keys, cached, lengths_N.tolist(), records, tokens, ends)], prompts


def _records(batch: pa.RecordBatch, columns: tuple[str, ...], lengths_N: npt.NDArray[np.int32]) -> list[Record]:
    if len(lengths_N) and lengths_N.min() < 1:
        raise ValueError("a completion has at least one token")
    ends = np.cumsum(lengths_N + 1, dtype=np.int64)
    read = {name: _lists(batch, name) for name in columns}
    for name, (_, offsets) in read.items():
        counts_N, expected_N = np.diff(offsets), lengths_N + has_last_state(name)
        if (wrong := np.flatnonzero(counts_N != expected_N)).size:
            row = int(wrong[0])
            raise ValueError(f"row {row}: {counts_N[row]} numbers of {name} came, {expected_N[row]} fit its length")
    # Every count is right, so that the lengths are no larger than what came.
    numbers_SK = np.full((int(ends[-1]) if len(ends) else 0, len(columns)), np.nan, np.float32)
    for index, (name, (flat, offsets)) in enumerate(read.items()):
        states = slice(None) if has_last_state(name) else _has_action(lengths_N)
        numbers_SK[states, index] = flat[offsets[0] : offsets[-1]]
    return [Record(columns, numbers_SK[end - length - 1 : end]) for end, length in zip(ends, lengths_N, strict=True)]


def _has_action(lengths_N: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which of all completions' states, one after another, are not the last of theirs."""
    has_action_S = np.ones(int(lengths_N.sum()) + len(lengths_N), bool)
    has_action_S[np.cumsum(lengths_N + 1) - 1] = False
    return has_action_S


def _list_array(flat: npt.NDArray[Any], lengths_N: npt.ArrayLike, mask: Any = None) -> pa.ListArray:
    offsets = np.cumsum(np.append(0, lengths_N), dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), mask=mask)


def _batch(columns: dict[str, pa.Array], metadata: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns), metadata={METADATA: metadata})


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _table(body: bytes) -> tuple[bytes, pa.RecordBatch]:
    """The metadata under `tvkd` (`{}` where there is none), and all rows in one batch that was validated."""
    source = pa.BufferReader(body)
    first, *messages = list(pa.ipc.MessageReader.open_stream(source)) or [None]
    if first is None or first.type != "schema" or not body.endswith(END_OF_STREAM) or source.tell() != len(body):
        raise ValueError("it is cut off or is no Arrow IPC stream, which begins with a schema and ends with its mark")
    schema = pa.ipc.read_schema(first)
    for message in messages:
        if message.type != "record batch" or is_compressed(bytes(message.metadata)):
            raise ValueError("it holds more than plain record batches; write it without compression and dictionaries")
    batches = [pa.ipc.read_record_batch(message, schema) for message in messages]
    for batch in batches:
        batch.validate(full=True)
    if not sum(batch.num_rows for batch in batches):
        raise ValueError("it has no rows")
    whole = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    return (schema.metadata or {}).get(METADATA, b"{}"), whole


def _check_types(schema: pa.Schema, expected: dict[str, pa.DataType], *, others: bool = False) -> None:
    """Raises ValueError unless the schema has each expected column once, of its type, and no other unless allowed."""
    if len(set(schema.names)) != len(schema.names):
        raise ValueError("two columns have one name")
    if unknown := [] if others else [name for name in schema.names if name not in expected]:
        raise ValueError(f"column {unknown[0]} is unknown; the columns are {', '.join(expected)}")
    for name, data_type in expected.items():
        given = schema.field(name).type if name in schema.names else None
        if not (given == data_type or (pa.types.is_list(given or pa.null()) and _same_values(given, data_type))):
            raise ValueError(f"column {name} is {given or 'missing'}; it has to be {data_type}")


def _same_values(given: pa.DataType, expected: pa.DataType) -> bool:
    return bool(pa.types.is_list(expected) and given.value_type == expected.value_type)


def _plain(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int32]:
    if batch.column(name).null_count:
        raise ValueError(f"column {name} holds nulls")
    values: npt.NDArray[np.int32] = batch.column(name).to_numpy()
    return values


def _lists(batch: pa.RecordBatch, name: str, *, nulls: bool = False) -> tuple[Any, npt.NDArray[np.int32]]:
    """All numbers of a list column in one array, and where each row begins in it, with the end of the last."""
    column = batch.column(name)
    if (column.null_count and not nulls) or column.values.null_count:
        raise ValueError(f"column {name} holds nulls")
    return column.values.to_numpy(), column.offsets.to_numpy()


def line_of(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
