"""What a right server answers, with made-up numbers, and the same answer after a change: both as Arrow streams."""

import json

import httpx
import numpy as np
import pyarrow as pa

from tvkd_client.http import TeacherClient
from tvkd_shared import arrow_codec
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record, column_names
from tvkd_shared.wire import CompletionAnswer, ItemAnswer, PotentialsAnswer, PotentialsRequest, TokenItem

URL = "http://teacher.test"
ITEM = TokenItem([5, 6], [[7, 8, 9], [10]])
TEACHER = "a" * 32


def read(request: httpx.Request) -> PotentialsRequest:
    return arrow_codec.decode_request(request.content)


def right(request: httpx.Request, teacher: str = TEACHER) -> bytes:
    """Values of 0.5·τ, action logits of 1.5 and entropies of 0.25, all cached."""
    asked = read(request)
    items = []
    for item in asked.items:
        completions = []
        for key, ids in zip(
            completion_keys(teacher, item.prompt_token_ids, item.completions), item.completions, strict=True
        ):
            values = {tau: np.full(len(ids) + 1, 0.5 * tau, np.float32) for tau in asked.temperatures}
            record = Record.of(values, np.full(len(ids), 1.5, np.float32), np.full(len(ids) + 1, 0.25, np.float32))
            assert set(asked.columns()) <= set(column_names(asked.temperatures))
            completions.append(CompletionAnswer(key, True, len(ids), record if asked.return_ == "values" else None))
        items.append(ItemAnswer(completions))
    return arrow_codec.encode_answer(PotentialsAnswer(teacher, asked.temperatures, asked.columns(), items))


def answer(request: httpx.Request, teacher: str = TEACHER) -> httpx.Response:
    return httpx.Response(200, content=right(request, teacher))


def changed(stream: bytes, change) -> bytes:
    """The stream after `change(about, rows, schema)`: its metadata, a dict a row, and its list of fields."""
    table = pa.ipc.open_stream(stream).read_all()
    about, rows, fields = json.loads(table.schema.metadata[b"tvkd"]), table.to_pylist(), list(table.schema)
    change(about, rows, fields)
    schema = pa.schema(fields, metadata={b"tvkd": json.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return sink.getvalue().to_pybytes()


def client_of(handler, **settings) -> TeacherClient:
    return TeacherClient(URL, transport=httpx.MockTransport(handler), **{"patience": 30} | settings)


def doctored(change) -> TeacherClient:
    return client_of(lambda request: httpx.Response(200, content=changed(right(request), change)))
