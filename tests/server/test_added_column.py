"""A stored column is one declaration and one function. It is then computed, kept, sent and read by name."""

import json

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from tvkd.store.rescore import _numbers
from tvkd_client import answer
from tvkd_client.http import TeacherClient
from tvkd_server.app import create_app
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers import head
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared import record
from tvkd_shared.record import Column, Record, column_names
from tvkd_shared.store import StoreReader
from tvkd_shared.wire import TokenItem

ITEM = TokenItem([9, 10], [[11, 12], [13]])


@pytest.fixture
def app(tiny_teacher, tmp_path):
    settings = ServeSettings(model=str(tiny_teacher), store=str(tmp_path / "values"))
    with TestClient(create_app(settings, lambda: load_teacher(settings))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client


def client_of(app: TestClient) -> TeacherClient:
    """A client of the real app in this process, through httpx's own way to put a function in place of the network."""

    def forward(request: httpx.Request) -> httpx.Response:
        answer = app.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(answer.status_code, content=answer.content, headers=dict(answer.headers))

    return TeacherClient("http://testserver", transport=httpx.MockTransport(forward))


def test_a_column_added_in_memory_goes_through_teacher_store_wire_and_client(monkeypatch, app, tmp_path):
    monkeypatch.setattr(record, "COLUMNS", (*record.COLUMNS, Column("top_logit", "top_logits")))
    monkeypatch.setitem(head.COLUMN_FUNCTIONS, "top_logit", lambda softmax: softmax.top_S)
    ((first, second),) = client_of(app).potentials([ITEM])
    assert first.columns == column_names() and first.columns[-1] == "top_logit"
    assert (first.column("top_logit") < first.value()).all() and len(second.column("top_logit")) == 2
    body = {"entropy": True, "items": [{"prompt_token_ids": [9, 10], "completions": [[11, 12], [13]]}]}
    answer = json.loads(app.post("/v1/potentials", json=body).content)["items"][0]["completions"]
    assert [completion["cached"] for completion in answer] == [True, True]
    for completion, one in zip(answer, (first, second), strict=True):
        assert np.array_equal(np.float32(completion["top_logits"]), one.column("top_logit"))
    (stored,) = StoreReader(tmp_path / "values").get([bytes.fromhex(answer[0]["key"])])
    assert stored is not None and np.array_equal(stored.column("top_logit"), first.column("top_logit"))


def test_the_client_makes_a_key_s_digest_once_for_each_completion(monkeypatch, app):
    made = []

    def counting(teacher, prompt, completions):
        made.extend(completions)
        return completion_keys(teacher, prompt, completions)

    completion_keys = answer.completion_keys
    monkeypatch.setattr(answer, "completion_keys", counting)
    client_of(app).potentials([ITEM, ITEM])
    assert len(made) == 4


def test_a_certificate_is_about_every_column(monkeypatch):
    monkeypatch.setattr(record, "COLUMNS", (*record.COLUMNS, Column("top_logit", "top_logits")))
    numbers_SK = np.arange(12, dtype=np.float32).reshape(3, 4)
    numbers_SK[-1, column_names().index(record.ACTION_LOGIT)] = np.nan
    compared = _numbers(Record(column_names(), numbers_SK))
    assert sorted(compared.tolist()) == sorted(numbers_SK[np.isfinite(numbers_SK)].tolist())
