"""How often a request asks the store and makes a digest, counted in the real app on a real store and teacher."""

import asyncio
import gc
import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

import tvkd_server.app
from tvkd_server.app import create_app
from tvkd_server.service import _for_each
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared import key as keys
from tvkd_shared import store as stores

ITEMS = [
    {"prompt_token_ids": [9, 10], "completions": [[11, 12], [13]]},
    {"prompt_token_ids": [14], "completions": [[15, 16, 17]]},
]


@pytest.fixture
def counted(tiny_teacher, tmp_path, monkeypatch):
    """The app, and the keys that its store was asked for and told to keep, in order."""
    looked_up: list[bytes] = []
    put: list[bytes] = []

    def counting(*arguments, **settings):
        store = stores.open_store(*arguments, **settings)

        class Counting(type(store)):
            def get(self, wanted, *rest):
                looked_up.extend(wanted)
                return super().get(wanted, *rest)

            def put(self, teacher_id, records):
                put.extend(key for key, _ in records)
                return super().put(teacher_id, records)

        store.__class__ = Counting
        return store

    monkeypatch.setattr(tvkd_server.app, "open_store", counting)
    settings = ServeSettings(model=str(tiny_teacher), store=str(tmp_path / "values"))
    with TestClient(create_app(settings, lambda: load_teacher(settings))) as client:
        while client.get("/readyz").status_code != 200:
            pass
        yield client, looked_up, put


def ask(client, **options):
    answer = client.post("/v1/potentials", json={"items": ITEMS} | options)
    assert answer.status_code == 200, answer.text
    return [completion for item in answer.json()["items"] for completion in item["completions"]]


def test_a_key_is_looked_up_once_when_it_hits_and_once_beside_its_put_when_it_misses(counted):
    client, looked_up, put = counted
    missed = [bytes.fromhex(completion["key"]) for completion in ask(client)]
    assert looked_up == missed and sorted(put) == sorted(missed)
    looked_up.clear()
    put.clear()
    assert all(completion["cached"] for completion in ask(client))
    assert looked_up == missed and put == []


def test_a_key_that_many_ask_for_at_once_is_looked_up_by_few_and_put_once(counted):
    client, _, put = counted
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(client), range(20)))
    assert len(put) == 3
    assert sum(not completion["cached"] for answer in answers for completion in answer) == 3


def test_a_digest_is_made_once_for_each_completion_of_a_request(counted, monkeypatch):
    client, *_ = counted
    made = []

    class Counted:
        def __init__(self, digest):
            self._digest = digest

        def copy(self):
            made.append(1)
            return self._digest.copy()

        def update(self, payload):
            self._digest.update(payload)

    blake2b = hashlib.blake2b
    monkeypatch.setattr(keys.hashlib, "blake2b", lambda *arguments, **rest: Counted(blake2b(*arguments, **rest)))
    ask(client)
    assert len(made) == 3


def test_what_the_engine_imported_is_not_gone_through_again_and_again(counted):
    assert gc.get_freeze_count() > 100_000


def test_of_a_request_of_any_size_few_prompts_are_worked_on_at_once(counted):
    client, _, put = counted
    teacher = client.app.state.readiness.service.teacher
    at_work, most, score = 0, 0, teacher.score

    async def scored(*question):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        records = await score(*question)
        at_work -= 1
        return records

    teacher.score = scored
    items = [{"prompt_token_ids": [9 + n % 90], "completions": [[9 + n // 90]]} for n in range(900)]
    answer = client.post("/v1/potentials", json={"items": items, "return": "digests"})
    assert (answer.status_code, len(put), most) == (200, 900, 256)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_all_prompts_are_worked_on_to_their_end_before_an_error_is_raised(error):
    ended = []

    async def work(number):
        await asyncio.sleep(0.01 * number)
        if number == 1:
            raise error
        ended.append(number)

    with pytest.raises(error):
        asyncio.run(_for_each(range(4), work))
    assert ended == [0, 2, 3]
